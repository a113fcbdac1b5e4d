"""What this library does on a device: speed, memory and a short training, as a table and as JSON.

    python tools/device_check.py --pack CTS DIR    # here: code and a compact cohort, a folder of at most 60 MB
    python device_check.py                         # there: on the card, without a network, in about 8 minutes
    python tools/device_check.py --small           # on a CPU, in about 2 minutes

Each measurement is written to `device_check.json` as soon as it is taken; what failed or did not fit says so, and
nothing is written that was not measured. The pack carries prepared cases, so neither CTs nor SimpleITK are needed.
Where papermill is installed, the claims about cost (C2, C3, C6) and, on a card, about memory (C7) become result files
in `device_check_claims/`; those of a card can be copied to nbs/runs/results, from which the ledger is made.
"""
import argparse, json, os, shutil, statistics, sys, tempfile, time
from pathlib import Path

here = Path(__file__).resolve().parent
root = here if (here/'xray_ct').is_dir() else here.parent
limit = 60e6 # bytes of a pack
claims_from = Path('nbs/runs/attention.ipynb')

# ---------------------------------------------------------------- the pack
def pack(cts, out, patients=24):
    "Code, this script and the prepared cases of some patients."
    from xray_ct.data.cohort import Cohort, CohortConfig
    from xray_ct.provenance import revision
    if out.exists(): sys.exit(f'{out}: is there already. Choose a new folder')
    ignore = shutil.ignore_patterns('__pycache__', '*.pyc')
    shutil.copytree(root/'xray_ct', out/'xray_ct', ignore=ignore)
    (out/'xray_ct'/'revision.txt').write_text(revision() or '')
    (out/claims_from).parent.mkdir(parents=True)
    shutil.copy(root/claims_from, out/claims_from)
    shutil.copy(__file__, out/'device_check.py')
    (out/'cases').mkdir()
    parts, size = {}, sum(f.stat().st_size for f in out.rglob('*') if f.is_file())
    with tempfile.TemporaryDirectory() as cache:
        cohort = Cohort.prepare(cts, CohortConfig(max_patients=patients), cache)
        for part, cases in cohort.parts.items():
            for i, case in enumerate(cases):
                file = out/'cases'/f'{part}-{i}.npz'
                squeeze(case.file, file)
                parts.setdefault(part, []).append(file.name)
                size += file.stat().st_size
                if size > limit: sys.exit(f'{size/1e6:.0f} MB are more than {limit/1e6:.0f}. Give fewer --patients')
    (out/'cases'/'parts.json').write_text(json.dumps(parts))
    print(f'{out}: {size/1e6:.1f} MB, {sum(map(len, parts.values()))} cases')

def squeeze(source, file):
    "A case's cache file, compressed, without its patient's name."
    import numpy as np
    from safetensors import safe_open
    with safe_open(source, 'np') as f:
        head = json.loads(f.metadata()['case']) | dict(patient=file.stem, source=file.stem)
        np.savez_compressed(file, head=json.dumps(head), **{k: f.get_tensor(k) for k in f.keys()})

def unpacked(folder, cache, config):
    "The cohort of a pack."
    import numpy as np, torch
    from safetensors.torch import save_file
    from xray_ct.data.cohort import Case, Cohort
    parts = {}
    for part, names in json.loads((folder/'parts.json').read_text()).items():
        for name in names:
            with np.load(folder/name) as f:
                head, file = str(f['head']), cache/f'{Path(name).stem}.safetensors'
                save_file({k: torch.from_numpy(f[k]) for k in ('hu', 'smooth')}, file, metadata={'case': head})
            parts.setdefault(part, []).append(Case(Path(name).stem, folder/name, file=file))
    return Cohort(config, parts)

# ---------------------------------------------------------------- what is measured
class Report:
    "Rows of a table, written down one by one."
    def __init__(self, file, device):
        import platform, torch
        from xray_ct import __version__
        card = torch.cuda.get_device_properties(device) if device.type == 'cuda' else None
        self.file, self.rows, self.device = file, {}, device
        self.about = dict(xray_ct=__version__, torch=torch.__version__, cuda=torch.version.cuda,
                          device=card.name if card else platform.processor() or platform.machine(),
                          memory_gb=card.total_memory/1e9 if card else None, threads=torch.get_num_threads())
        print(' · '.join(f'{k} {v}' for k, v in self.about.items() if v), flush=True)

    def take(self, name, unit, measure):
        "One measurement: a number, or why there is none."
        import torch
        try: value, why = measure(), None
        except ImportError as e: value, why = None, f'not installed ({e.name})'
        except torch.OutOfMemoryError: value, why = None, 'out of memory'
        except Exception as e: value, why = None, f'{type(e).__name__}: {str(e)[:120]}'
        self.rows[name] = dict(value=value, unit=unit) if why is None else dict(missing=why)
        shown = f'         – {why}' if why else f'{value:>10}' if isinstance(value, str) else f'{value:10.3g} {unit}'
        print(f'{name:58} {shown}', flush=True)
        self.file.write_text(json.dumps(dict(self.about, measured=self.rows), indent=1))
        if self.device.type == 'cuda': torch.cuda.empty_cache()
        return value

def wait(device):
    import torch
    if device.type == 'cuda': torch.cuda.synchronize(device)

def milliseconds(f, device, repeats=10):
    "Median time of a call, after three that do not count."
    times = []
    for _ in range(repeats + 3):
        wait(device)
        start = time.perf_counter()
        f()
        wait(device)
        times.append(1000*(time.perf_counter() - start))
    return statistics.median(times[3:])

def projectors(report, device, size):
    "This projector, nanodrr and DiffDRR: one frontal view of one volume."
    import torch
    from xray_ct.geometry import Geometry
    from xray_ct.projector import Projector
    g = Geometry.for_field(320., size, 2*size, views=('pa',))
    mu = torch.rand(1, 1, size, size, size, device=device)
    P, here = Projector(g).to(device), Projector(g)
    def apart(f, x): return ((f(P, x.to(device)).cpu() - f(here, x)).norm()/f(here, x).norm()).item()
    what = f'projector {size}³/{2*size}²'
    report.take(f'{what}: forward, against the CPU', 'relative', lambda: apart(lambda A, x: A(x), mu.cpu()))
    report.take(f'{what}: adjoint, against the CPU', 'relative',
                lambda: apart(lambda A, x: A.adjoint(x), torch.rand(1, 1, 2*size, 2*size)))
    def both():
        x = mu.clone().requires_grad_()
        P(x).sum().backward()
    report.take(f'{what}: forward', 'ms', lambda: milliseconds(lambda: P(mu), device))
    report.take(f'{what}: forward and backward', 'ms', lambda: milliseconds(both, device))
    many = mu.expand(8, -1, -1, -1, -1).contiguous()
    report.take(f'{what}: forward, of 8 at once, each', 'ms', lambda: milliseconds(lambda: P(many), device)/8)
    report.take(f'DiffDRR {size}³/{2*size}²: forward (trilinear)', 'ms', lambda: other_drr(mu[0, 0], g, device, False))
    report.take(f'DiffDRR {size}³/{2*size}²: forward and backward', 'ms', lambda: other_drr(mu[0, 0], g, device, True))

def other_drr(mu, g, device, backward):
    "DiffDRR's trilinear renderer with as many points as voxels, at the same distances."
    import torch, torchio
    from diffdrr.drr import DRR
    from diffdrr.data import read
    affine = torch.diag(torch.tensor([*g.spacing, 1.])).numpy()
    image = torchio.ScalarImage(tensor=mu.cpu()[None].float(), affine=affine)
    drr = DRR(read(image, orientation='AP'), sdd=g.sdd, height=g.det_shape[0], delx=g.pixel[0], renderer='trilinear')
    drr = drr.to(device)
    turn, move = torch.zeros(1, 3, device=device), torch.tensor([[0., g.sid, 0.]], device=device)
    volume = drr.density.requires_grad_(backward)
    def once():
        out = drr(turn, move, parameterization='euler_angles', convention='ZXY', n_points=len(mu))
        if backward: out.sum().backward()
    return milliseconds(once, device) if volume is not None else None

def items_a_second(cohort, device, batch):
    from xray_ct.data.items import Items
    ds = cohort.dataset('train', augment=True, passes=100)
    items, starts = Items(ds, device), iter(range(0, len(ds) - batch, batch))
    def once():
        k = next(starts)
        items.batch(range(k, k + batch))
    return 1000*batch/milliseconds(once, device, 5)

def trained(cohort, device, folder, seconds, **run):
    "`xray_ct train` for so long → steps a second, and the validation PSNR."
    from contextlib import redirect_stdout
    from unittest import mock
    from xray_ct.data.cohort import Cohort
    from xray_ct.training import RunConfig, fit
    config = RunConfig(minutes=seconds/60, figures=False, cohort=cohort.config, device=str(device), **run)
    with mock.patch.object(Cohort, 'prepare', classmethod(lambda cls, *a, **k: cohort)), redirect_stdout(sys.stderr):
        info = fit(config, folder, folder/f'{run["preset"]}-{cohort.config.size}')
    return info

def speeds(report, cohort, device, folder, batch, lengths):
    "Steps a second and the score of `xray_ct train`, then steps a second of `base` at twice the resolution."
    from dataclasses import replace
    from xray_ct.data.cohort import Cohort
    c = cohort.config
    finer = Cohort(replace(c, size=2*c.size, spacing=c.spacing/2), cohort.parts)
    asked = [(cohort, p, s, batch) for p, s in lengths.items()] + [(finer, 'base', min(lengths.values()), batch//2)]
    for these, preset, seconds, n in asked:
        end = {}
        def speed():
            end.update(trained(these, device, folder, seconds, preset=preset, batch_size=n))
            return end['steps']/end['seconds']
        what = f'train direct:{preset} {these.config.size}³, batch {n}, {seconds} s'
        report.take(what, 'steps/s', speed)
        # the cases were prepared for the coarser grid
        if these is cohort: report.take(f'{what}: validation', 'dB', lambda: end['psnr_range2000'])

def memory(report, device, preset, edge, turns=1, **changes): # GB reserved, each turn; none without a card
    "A training step: predicted, held and reserved."
    import torch
    from xray_ct.geometry import Geometry
    from xray_ct.memory import vet
    from xray_ct.models.progressive import ProgressiveModel, progressive_preset
    g = Geometry.for_field(320., edge, edge, views='ap,lat')
    build = lambda: ProgressiveModel(progressive_preset(preset, g, base='mean', **changes))
    shapes = (1, 2, edge, edge), None, (1, 1, edge, edge, edge)
    what = f'{preset} {edge}³{", slabs" if changes else ""}'
    loss = lambda y: y.abs().mean()
    vetted = {}
    def predicted():
        vetted['found'] = vet(build, shapes, loss=loss, precision='bf16', advise=False, keep_grads=False)
        return vetted['found'].peak/1e9
    report.take(f'{what}: held, predicted', 'GB', predicted)
    report.take(f'{what}: reserved, predicted', 'GB', lambda: vetted['found'].reserved/1e9)
    if device.type != 'cuda': return []
    def step():
        net = build().to(device).train()
        opt = torch.optim.AdamW(net.parameters())
        x, target = torch.rand(shapes[0], device=device), torch.rand(shapes[2], device=device)
        torch.cuda.reset_peak_memory_stats(device)
        for _ in range(3):
            start = time.perf_counter()
            with torch.autocast('cuda', torch.bfloat16): value = loss(net(x, None, target))
            value.backward()
            opt.step()
            opt.zero_grad()
            wait(device)
        vetted['seconds'] = time.perf_counter() - start
        return torch.cuda.max_memory_allocated(device)/1e9
    reserved = []
    for turn in range(turns):
        held = report.take(f'{what}: held{f", turn {turn + 1}" if turn else ""}', 'GB', step)
        if held is None: return []  # out of memory: what was reserved until then is no measurement
        reserved.append(torch.cuda.max_memory_reserved(device)/1e9)
    report.take(f'{what}: reserved', 'GB', lambda: statistics.median(reserved))
    report.take(f'{what}: a step', 's', lambda: vetted['seconds'])
    return reserved

def cost_claims(report, device, small, folder):
    "C2, C3 and C6 by their notebook, as the ledger's files."
    # a short run on a CPU; on a card the record's parameters
    given = (dict(tokens=[128], seeds=[0], repeats=1, size=16) if small else
             dict(tokens=[512, 2048, 4096], formula_up_to=2048, seeds=[0, 1, 2], preset='reference'))
    verdicts = {}
    def run():
        import papermill
        folder.mkdir(parents=True, exist_ok=True)
        papermill.execute_notebook(root/claims_from, folder/claims_from.name, progress_bar=False, cwd=root,
                                   parameters=dict(given, devices=[device.type], out=str(folder.resolve())))
        verdicts.update({c: json.loads((folder/f'{c}.json').read_text())['verdict'] for c in ('C2', 'C3', 'C6')})
        return verdicts['C2']
    report.take('claim C2', '', run)
    for c in 'C3', 'C6': report.take(f'claim {c}', '', lambda: verdicts[c])

def steps_of_256(report, device, small, folder):
    "Memory and time of a step of each design, whole and in slabs; C7 where a card has measured it."
    reserved, edge = {}, 32 if small else 256
    for preset in ('lean',) if small else ('lean', 'reduced', 'full'):
        turns = 1 if preset == 'lean' else 3
        reserved[preset] = memory(report, device, preset, edge, turns)
        memory(report, device, preset, edge, slab=edge//8)
    if len(reserved.get('reduced', [])) == 3: report.take('claim C7', '', lambda: memory_claim(reserved, folder))

def memory_claim(reserved, folder): # GB, each turn, of the uncut and of the cut design
    "C7 as the ledger's file: what a card reserved for a step at 256³."
    from xray_ct.claims import judge, write_claim
    full, cut = (reserved[k] for k in ('full', 'reduced'))
    values = {'reduced, whole: GB reserved': cut, **({'full, whole: GB reserved': full} if full else {})}
    reason = (f'A card reserved {statistics.median(cut):.1f} GB for a training step of the cut design at 256³'
              + (f' and {statistics.median(full):.1f} GB for one of the uncut design.' if full else
                 '; the uncut design did not fit.'))
    folder.mkdir(parents=True, exist_ok=True)
    return write_claim(folder, 'C7', 'python tools/device_check.py', {}, [0], values, judge(cut, 144),
                       'GB that a card reserved for a step of the cut design at 256³ over the turns: above 144 holds',
                       reason)['verdict']

# ---------------------------------------------------------------- the whole
def check(cases, out, device, small):
    import torch
    from xray_ct.data.cohort import Cohort, CohortConfig
    os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))
    os.environ.setdefault('PYTORCH_CUDA_ALLOC_CONF', 'expandable_segments:True')
    if small: torch.set_num_threads(1)
    report, scratch = Report(out, device), Path(tempfile.mkdtemp(prefix='device_check_'))
    try:
        if cases: cohort = unpacked(cases, scratch, CohortConfig())
        else:
            from xray_ct.data.phantom import write_cohort
            write_cohort(scratch/'cts', n=8, size=32, spacing=10.)
            config = CohortConfig(size=32, spacing=10., det=64) if small else CohortConfig()
            cohort = Cohort.prepare(scratch/'cts', config, scratch/'cache')
        for size in (32,) if small else (128, 256): projectors(report, device, size)
        batch, folder = 2 if small else 16, out.parent/f'{out.stem}_claims'
        report.take('items', 'a second', lambda: items_a_second(cohort, device, batch))
        speeds(report, cohort, device, scratch, batch, dict(tiny=10, base=10) if small else dict(tiny=30, base=240))
        steps_of_256(report, device, small, folder)
        cost_claims(report, device, small, folder)
    finally: shutil.rmtree(scratch, ignore_errors=True)
    print(f'written to {out}')

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--pack', nargs=2, type=Path, metavar=('CTS', 'DIR'), help='prepare a folder to carry to a card')
    p.add_argument('--patients', type=int, default=24, help='in the pack')
    p.add_argument('--small', action='store_true', help='small volumes, seconds of training, one thread')
    p.add_argument('--device', default='auto', help='auto, cpu or cuda')
    p.add_argument('--out', type=Path, default=Path('device_check.json'))
    a = p.parse_args()
    sys.path.insert(0, str(root))
    if a.pack: return pack(a.pack[0].resolve(), a.pack[1], a.patients)
    from xray_ct.files import InputError
    from xray_ct.training import training_device
    cases = here/'cases'
    try: check(cases if cases.is_dir() and not a.small else None, a.out, training_device(a.device), a.small)
    except InputError as e: sys.exit(f'device_check: {e}')

if __name__ == '__main__': main()
