"""What a run by several processes must have in common with a run by one; over gloo, on CPUs.

    python tests/two_processes.py

Patients, batches and validation that the processes do not divide evenly; torchrun and accelerate; a run begun by two
processes, killed, continued by three, killed, and ended by one; shards (FSDP); every other kind of model; fastai's own
`distrib_ctx`; the clock; a loss that is NaN on one process only; an error.
"""
import contextlib, io, json, os, shutil, signal, subprocess, sys, tempfile
from dataclasses import replace
from pathlib import Path

def job(folder, name, kind, at):
    "Each process trains; in epoch `at` it is killed (`kill0`, `kill1`: the first, the second) or meets NaN (`nan1`)."
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
            for k, config in others(folder).items():
                run = folder/f'{k} by 2{", shards"*shard}'
                t.fit(replace(config, shard=shard), folder/'cts', run, folder/'cache')
        return
    if kind == 'stock': return stock(folder)
    plain, config = t.learner, replace(settings(), shard=kind[:5] == 'shard', l1=float(kind == 'l1'))
    t.learner = lambda *a: plain(*a).add_cb(Trouble())
    if kind == 'clock':  # a second a step; the others' clocks run three times as fast, and nobody may heed them
        config = replace(config, epochs=0, minutes=.1)
        t.Schedule.seconds = lambda self: self.used + (1 + 2*(rank() > 0))*getattr(self.learn, 'train_iter', 0)
    torch.set_num_threads(1)
    try: t.fit(config, folder/'cts', folder/name, folder/'cache')
    except t.Diverged as e:
        (folder/f'{name}.told{rank()}').write_text(str(e))
        sys.exit(2)

def others(folder):
    "The other kinds of model, small. Where one draws noise, each process draws its own: the weights differ from one's."
    from xray_ct.data.cohort import CohortConfig
    from xray_ct.data.pairs import PairConfig
    from xray_ct.training import RunConfig
    common = dict(epochs=2, batch_size=5, figures=False)
    coarse, fine = CohortConfig(size=16, spacing=20., det=64), CohortConfig(size=32, spacing=10., det=64)
    stage = RunConfig(model='cascade', **common, cohort=coarse, settings=dict(sample_steps=2))
    small = dict(widths=(16, 24), blocks=1, detail=8)
    return dict(
        hybrid=RunConfig(model='hybrid', l1=0., **common, cohort=coarse),
        stage1=stage,
        stage2=replace(stage, previous=str(folder/'stage1 by 2'), cohort=fine),
        thin=RunConfig(model='thin', l1=0., **common, cohort=PairConfig(slices=12, crop=24), settings=small))

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
    # Two steps an epoch. Without L1: its gradient is a sign, and the sign of one voxel, decided by a last bit, moves
    # these weights by 1e-4 (56_distributed).
    cohort = CohortConfig(size=16, spacing=20., det=32)
    config = RunConfig(epochs=10, passes=3, batch_size=13, l1=0., figures=False, cohort=cohort)
    return with_settings(config, dict(widths='16,32', down_blocks='0,1', up_blocks='1', encoder_width='16'))

def by_program(program, *options, name, kind='-', **env):
    "Run this script's job by torchrun or accelerate; what was printed."
    command = [Path(sys.executable).parent/program, *options, __file__, 'job', folder, name, kind, '-1']
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout

def start(n, name, kind='-', at=-1):
    from xray_ct.distributed import launch
    return launch([sys.executable, __file__, 'job', folder, name, kind, at], n)

def train(config, name):
    from xray_ct.training import fit
    return fit(config, folder/'cts', folder/name, folder/'cache')

def curves(name):
    "What log.csv rounds, without the seconds."
    from xray_ct.training import read_state
    return [row[:-1] for row in read_state(folder/name/'state.safetensors')[1]['rows']]

def apart(a, b):
    "The largest difference of two logs."
    pairs = zip(curves(a), curves(b), strict=True)
    return max(abs(x - y) for r, s in pairs for x, y in zip(r, s, strict=True))

def weights(a, b):
    "The largest difference of weights, averages and moments."
    from safetensors.torch import load_file
    x, y = (load_file(folder/n/'state.safetensors') for n in (a, b))
    assert x.keys() == y.keys()
    return max((x[k].double() - y[k].double()).abs().max().item() for k in x)

def same(name, others='one', log=1e-5, weight=1e-5):
    "Two runs agree but for the order of sums in float32, over some twenty steps."
    c, w = apart(name, others), weights(name, others)
    print(f'{name:40} largest difference of the log {c:.1e}, of weights, averages and moments {w:.1e}', flush=True)
    assert c < log and w < weight

torchrun = 'torchrun', '--standalone', '--nproc_per_node', '2'

def plain(config):
    "One process, and torchrun with two."
    from xray_ct.files import read_json
    train(config, 'one')
    cases = read_json(folder/'one'/'run.json')['cases']
    assert curves('one')[-1][5] == 20, 'twenty steps'
    assert cases['train'] % 2 and config.batch_size % 2, 'nothing divides evenly'
    said = by_program(*torchrun, name='torchrun, 2 processes')
    assert said.count('epoch  train_loss') == 1, said                                           # one process speaks
    same('torchrun, 2 processes')

def resumed(config):
    "Runs that are killed and continued by another number of processes."
    name = 'begun by 2, continued by 3, ended by 1'
    assert start(2, name, 'kill1', 3) == (137, 1)
    assert len(curves(name)) == 3
    assert start(3, name, 'kill0', 6) == (137, 0)
    assert len(curves(name)) == 6
    with contextlib.redirect_stdout(io.StringIO()) as out: train(config, name)
    assert 'begun with 3 processes, now 1' in out.getvalue(), out.getvalue()
    same(name)
    name = 'shards, begun by 2, ended by 3'
    assert start(2, name, 'shard, kill1', 6) == (137, 1)
    assert start(3, name, 'shard') == (0, None)
    same(name)

def with_l1(config):
    "L1's gradient is a sign: the last bit of a voxel decides it, so the runs are only near each other."
    assert start(2, 'with L1', 'l1') == (0, None)
    train(replace(config, l1=1.), 'one with L1')
    same('with L1', 'one with L1', log=1e-2, weight=1e-3)

def other_models():
    from xray_ct.files import read_json
    assert start(2, '-', 'others') == (0, None)
    for k, config in others(folder).items():
        if k in ('hybrid', 'thin'):
            train(config, k)
            same(f'{k} by 2', k)
        else: assert read_json(folder/f'{k} by 2'/'run.json')['finished'] and len(curves(f'{k} by 2')) == 2
        same(f'{k} by 2, shards', f'{k} by 2')

def fastai_context():
    import torch
    by_program(*torchrun, name='-', kind='stock', ACCELERATE_USE_CPU='true')
    ends, log = [torch.load(folder/f'stock{r}.pt') for r in (0, 1)], json.loads((folder/'stock.json').read_text())
    assert all(torch.equal(ends[0][k], v) for k, v in ends[1].items()) and log[1][0] < log[0][0], log
    print(f"fastai's distrib_ctx: training loss {log[0][0]:.4f}, {log[1][0]:.4f}; "
          'both processes end in the same weights', flush=True)

def clock():
    from xray_ct.files import read_json
    assert start(2, 'clock', 'clock') == (0, None)
    job(folder, 'clock alone', 'clock', -1)
    assert read_json(folder/'clock'/'run.json')['steps'] == 6
    same('clock', 'clock alone')

def errors():
    "A loss that is NaN on the second process alone is named by both; two patients are not enough."
    from xray_ct.distributed import fit_by
    from xray_ct.files import InputError
    assert start(2, 'nan', 'nan1', 2)[0] == 2
    told = [f.read_text() for r in (0, 1) if (f := folder/f'nan.told{r}').exists()]
    assert told and all('the loss is nan in training, epoch 2, step 0' in t for t in told), told
    assert len(curves('nan')) == 2
    (folder/'few').mkdir()
    for f in sorted((folder/'cts').glob('*.nii*'))[:2]: os.link(f, folder/'few'/f.name)
    try: fit_by(2, settings(), folder/'few', folder/'few-run')
    except InputError as e: assert '2 patients with a readable CT; at least 3' in str(e)
    else: raise AssertionError('two patients were enough')

def accelerate():
    said = by_program('accelerate', 'launch', '--cpu', '--num_processes', '2', name='accelerate')
    assert 'accelerate was asked for 2 processes and started one' in said, said
    assert weights('accelerate', 'one') == 0

def main():
    import torch
    from xray_ct.data.phantom import write_cohort
    os.environ['OMP_NUM_THREADS'] = '1'
    torch.set_num_threads(1)
    write_cohort(folder/'cts', n=16, size=32, spacing=10.)
    config = settings()
    plain(config)
    resumed(config)
    with_l1(config)
    other_models()
    fastai_context()
    clock()
    errors()
    accelerate()
    shutil.rmtree(folder)

if __name__ == '__main__':
    if sys.argv[1:2] == ['job']: job(Path(sys.argv[2]), *sys.argv[3:])
    else:
        folder = Path(tempfile.mkdtemp(prefix='xray_ct_two_'))
        main()
