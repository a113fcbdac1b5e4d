"""What a run by several processes must have in common with a run by one; over gloo, on CPUs.

    python tests/two_processes.py

Patients, batches and validation that the processes don't divide evenly; torchrun and accelerate; a run begun by two,
killed, gone on with by three, killed, and ended by one; shards (FSDP); every other kind of model; fastai's own `distrib_ctx`; the clock; a loss that is NaN on one process only; an error.
"""
import contextlib, io, json, os, signal, subprocess, sys, tempfile
from dataclasses import replace
from pathlib import Path

def job(folder, name, kind, at):
    "What each process does: train, and in epoch `at` be killed (`kill0`, `kill1`: the first, the second one), or meet NaN (`nan1`)."
    import torch
    import xray_ct.training as t
    from fastai.basics import Callback
    from xray_ct.ranks import rank
    class Trouble(Callback):
        order = 4
        def before_batch(self):
            if not self.training or self.epoch != int(at) or kind[-1:] != str(rank()): return
            if 'kill' in kind: os.kill(os.getpid(), signal.SIGKILL)
            self.learn.yb = (self.yb[0]*float('nan'),)
    if kind == 'others':
        for shard in (False, True):
            for k, config in others(folder).items(): t.fit(replace(config, shard=shard), folder/'cts', folder/f'{k} by 2{", shards"*shard}', folder/'cache')
        return
    if kind == 'stock': return stock(folder)
    plain, config = t.learner, replace(settings(), shard=kind[:5] == 'shard', l1=float(kind == 'l1'))
    t.learner = lambda *a: plain(*a).add_cb(Trouble())
    if kind == 'clock':  # a second a step; the others' clocks run three times as fast, and nobody may heed them
        config = replace(config, epochs=0, minutes=.1)
        t.Schedule.seconds = lambda self: self.used + (1 + 2*(rank() > 0))*getattr(self.learn, 'train_iter', 0)
    torch.set_num_threads(1)
    try: t.fit(config, folder/'cts', folder/name, folder/'cache')
    except t.Diverged as e: (folder/f'{name}.told{rank()}').write_text(str(e)); sys.exit(2)

def others(folder):
    "The other kinds of model, small. Where one draws noise in training, each process has its own, and the weights differ from one process's."
    from xray_ct.data.cohort import CohortConfig
    from xray_ct.data.pairs import PairConfig
    from xray_ct.training import RunConfig
    common = dict(epochs=2, batch_size=5, figures=False)
    stage = RunConfig(model='cascade', **common, cohort=CohortConfig(size=16, spacing=20., det=64), settings=dict(sample_steps=2))
    return dict(hybrid=RunConfig(model='hybrid', l1=0., **common, cohort=CohortConfig(size=16, spacing=20., det=64)), stage1=stage,
        stage2=replace(stage, previous=str(folder/'stage1 by 2'), cohort=CohortConfig(size=32, spacing=10., det=64)),
        thin=RunConfig(model='thin', l1=0., **common, cohort=PairConfig(slices=12, crop=24), settings=dict(widths=(16, 24), blocks=1, detail=8)))

def stock(folder):
    "A Learner of one's own, with this library's model and loaders, under fastai's `distrib_ctx`."
    import torch
    from accelerate import DistributedDataParallelKwargs
    from fastai.basics import Learner, nn, set_seed
    from fastai.distributed import DistributedDL
    from xray_ct.data.cohort import Cohort
    from xray_ct.ranks import rank
    from xray_ct.training import build
    def broadcast(self, t, source):  # fastai's asks for CUDA, under gloo too
        t = torch.tensor(t)
        torch.distributed.broadcast(t, source)
        return t.tolist()
    DistributedDL._broadcast = broadcast
    config = settings()
    cohort = Cohort.prepare(folder/'cts', config.cohort, folder/'cache')
    model, _ = build(config, cohort)
    set_seed(rank())
    class Plain(nn.Module):  # a case's number is the loader's second input, the ridge base's own affair
        def __init__(self): super().__init__(); self.model = model
        def forward(self, x, case): return self.model(x, case)
    learn = Learner(cohort.dataloaders(4, device=torch.device('cpu')), Plain(), loss_func=nn.L1Loss(), lr=1e-3)
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)  # the encoder's tokens, in this model
    with learn.distrib_ctx(sync_bn=False, kwargs_handlers=[unused]), learn.no_bar(): learn.fit(2)
    torch.save({k: v for k, v in model.state_dict().items() if 'ridge' not in k}, folder/f'stock{rank()}.pt')
    if not rank(): (folder/'stock.json').write_text(json.dumps([list(map(float, v)) for v in learn.recorder.values]))

def settings():
    from xray_ct.data.cohort import CohortConfig
    from xray_ct.training import RunConfig, with_settings
    # without L1: its gradient is a sign, and one voxel's, decided by a last bit, moves these weights by 1e-4 (56_distributed)
    config = RunConfig(epochs=10, passes=3, batch_size=13, l1=0., figures=False, cohort=CohortConfig(size=16, spacing=20., det=32))  # two steps an epoch
    return with_settings(config, dict(widths='16,32', down_blocks='0,1', up_blocks='1', encoder_width='16'))

def main():
    from safetensors.torch import load_file
    from xray_ct.data.phantom import write_cohort
    from xray_ct.distributed import fit_by, launch
    from xray_ct.files import InputError, read_json
    from xray_ct.training import fit, read_state
    os.environ['OMP_NUM_THREADS'] = '1'
    folder, config = Path(tempfile.mkdtemp()), settings()
    write_cohort(folder/'cts', n=16, size=32, spacing=10.)
    def start(n, name, kind='-', at=-1): return launch([sys.executable, __file__, 'job', folder, name, kind, at], n)
    def curves(name): return [row[:-1] for row in read_state(folder/name/'state.safetensors')[1]['rows']]  # what log.csv rounds, without the seconds
    def apart(a, b): return max(abs(x - y) for r, s in zip(curves(a), curves(b), strict=True) for x, y in zip(r, s, strict=True))
    def weights(a, b):
        x, y = (load_file(folder/n/'state.safetensors') for n in (a, b))
        assert x.keys() == y.keys()
        return max((x[k].double() - y[k].double()).abs().max().item() for k in x)
    def same(name, others='one'):
        c, w = apart(name, others), weights(name, others)
        print(f'{name:40} largest difference of the log {c:.1e}, of weights, averages and moments {w:.1e}', flush=True)
        assert c < 1e-5 and w < 1e-5

    import torch
    torch.set_num_threads(1)
    fit(config, folder/'cts', folder/'one', folder/'cache')
    cases = read_json(folder/'one'/'run.json')['cases']
    assert curves('one')[-1][5] == 20 and cases['train'] % 2 and config.batch_size % 2, cases   # twenty steps; nothing divides evenly

    done = subprocess.run([Path(sys.executable).parent/'torchrun', '--standalone', '--nproc_per_node', '2', __file__, 'job', folder, 'torchrun, 2 processes', '-', '-1'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count('epoch  train_loss') == 1, done.stdout                             # one process speaks
    same('torchrun, 2 processes')

    name = 'begun by 2, gone on by 3, ended by 1'
    assert start(2, name, 'kill1', 3) == (137, 1)
    assert len(curves(name)) == 3
    assert start(3, name, 'kill0', 6) == (137, 0)
    assert len(curves(name)) == 6
    with contextlib.redirect_stdout(io.StringIO()) as out: fit(config, folder/'cts', folder/name, folder/'cache')
    assert 'begun with 3 processes, now 1' in out.getvalue(), out.getvalue()
    same(name)

    name = 'shards, begun by 2, ended by 3'
    assert start(2, name, 'shard, kill1', 6) == (137, 1)
    assert start(3, name, 'shard') == (0, None)
    same(name)

    assert start(2, 'with L1', 'l1') == (0, None)
    fit(replace(config, l1=1.), folder/'cts', folder/'one with L1', folder/'cache')
    print(f'with L1: largest difference of the log {apart("with L1", "one with L1"):.1e}, of weights, averages and moments {weights("with L1", "one with L1"):.1e}', flush=True)
    assert apart('with L1', 'one with L1') < 1e-2 and weights('with L1', 'one with L1') < 1e-3

    assert start(2, '-', 'others') == (0, None)
    for k, config in others(folder).items():
        if k in ('hybrid', 'thin'):
            fit(config, folder/'cts', folder/k, folder/'cache')
            same(f'{k} by 2', k)
        else: assert read_json(folder/f'{k} by 2'/'run.json')['finished'] and len(curves(f'{k} by 2')) == 2
        same(f'{k} by 2, shards', f'{k} by 2')

    done = subprocess.run([Path(sys.executable).parent/'torchrun', '--standalone', '--nproc_per_node', '2', __file__, 'job', folder, '-', 'stock', '-1'], capture_output=True, text=True, env={**os.environ, 'ACCELERATE_USE_CPU': 'true'})
    assert done.returncode == 0, done.stderr[-3000:]
    ends, log = [torch.load(folder/f'stock{r}.pt') for r in (0, 1)], json.loads((folder/'stock.json').read_text())
    assert all(torch.equal(ends[0][k], v) for k, v in ends[1].items()) and log[1][0] < log[0][0], log
    print(f'fastai\'s distrib_ctx: training loss {log[0][0]:.4f}, {log[1][0]:.4f}; both processes end in the same weights', flush=True)

    assert start(2, 'clock', 'clock') == (0, None)
    job(folder, 'clock alone', 'clock', -1)
    assert read_json(folder/'clock'/'run.json')['steps'] == 6
    same('clock', 'clock alone')

    assert start(2, 'nan', 'nan1', 2)[0] == 2                                                   # on the second process alone …
    told = [(folder/f'nan.told{r}').read_text() for r in (0, 1) if (folder/f'nan.told{r}').exists()]
    assert told and all('the loss is nan in training, epoch 2, step 0' in t for t in told), told    # … and both name it
    assert len(curves('nan')) == 2

    (folder/'few').mkdir()
    for f in sorted((folder/'cts').glob('*.nii*'))[:2]: os.link(f, folder/'few'/f.name)
    try: fit_by(2, settings(), folder/'few', folder/'few-run')
    except InputError as e: assert '2 patients with a readable CT; at least 3' in str(e)
    else: raise AssertionError('two patients were enough')

    done = subprocess.run([Path(sys.executable).parent/'accelerate', 'launch', '--cpu', '--num_processes', '2', __file__, 'job', folder, 'accelerate', '-', '-1'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'accelerate was asked for 2 processes and started one' in done.stdout, done.stdout
    assert weights('accelerate', 'one') == 0

if __name__ == '__main__':
    if sys.argv[1:2] == ['job']: job(Path(sys.argv[2]), *sys.argv[3:])
    else: main()
