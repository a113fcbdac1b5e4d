"""Trainings killed at random moments, by `kill -9` and by SIGTERM, in one process and in two: each is resumed, and ends
in the weights of one that nobody disturbed, to the last bit. What a kill leaves behind can be read.

    python tests/kill.py        # 2 kills, for CI
    python tests/kill.py 20     # so many; with a second argument, of that seed
"""
import csv, json, os, random, shutil, signal, subprocess, sys, tempfile, time
from pathlib import Path

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root/'tools'))
from machines import slowness

def settings():
    from xray_ct.data.cohort import CohortConfig
    from xray_ct.training import RunConfig, with_settings
    config = RunConfig(epochs=4, passes=3, cohort=CohortConfig(size=16, spacing=20., det=32))
    return with_settings(config, dict(widths='16,32', down_blocks='0,1', up_blocks='1', encoder_width='16'))

def train(folder, name, processes):
    from xray_ct.distributed import fit_by
    fit_by(processes, settings(), folder/'cts', folder/name, folder/'cache')

def start(folder, name, processes):
    command = [sys.executable, __file__, 'train', str(folder), name, str(processes)]
    with open(folder/f'{name}.log', 'a') as log: return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

def children(pid):
    try: return [int(c) for c in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]
    except OSError: return []

def alive(pid):
    try: return Path(f'/proc/{pid}/stat').read_text().split(')')[-1].split()[0] != 'Z'
    except OSError: return False

def readable(run):
    "How many files of a run folder can be read: all, but for those that were never finished (they begin with a dot)."
    from PIL import Image
    from safetensors import safe_open
    from xray_ct.training import read_state
    def finished(p): return p.is_file() and not any(part.startswith('.') for part in p.relative_to(run).parts)
    files = list(filter(finished, run.rglob('*')))
    for f in files:
        if f.suffix == '.json': json.loads(f.read_text())
        elif f.name.split('.')[0] in ('state', 'base') and f.suffix == '.safetensors': read_state(f)
        elif f.suffix == '.safetensors':
            with safe_open(f, 'pt') as t: [t.get_tensor(k) for k in t.keys()]
        elif f.suffix == '.jpg': Image.open(f).load()
        elif f.suffix == '.csv': assert len({len(row) for row in csv.reader(open(f))}) == 1, f
        else: raise AssertionError(f'{f}: what is this?')
    return len(files)

def same(a, b):
    "Every tensor of two runs, bit for bit."
    import torch
    from safetensors.torch import load_file
    for f in ('model.safetensors', 'state.safetensors'):
        x, y = load_file(a/f), load_file(b/f)
        assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x), (a, f)

def begun(p, run):
    "Wait until a training has written its first file, or ended."
    while not (run/'run.json').exists() and p.poll() is None: time.sleep(.005)

def undisturbed(folder, k):
    "Train by k processes; the seconds it takes once it has begun."
    p = start(folder, f'plain{k}', k)
    begun(p, folder/f'plain{k}')
    t = time.monotonic()
    assert p.wait() == 0, (folder/f'plain{k}.log').read_text()
    print(f'{k} process{"es"*(k > 1)}: {time.monotonic() - t:.1f} s', flush=True)
    return time.monotonic() - t

def killed(folder, name, k, how, wait, rng):
    "Start a training, kill one of its processes after a while; the exit code, and which one it was."
    p = start(folder, name, k)
    begun(p, folder/name)
    time.sleep(wait)
    crew = children(p.pid) if k > 1 else []
    target = rng.choice([p.pid, *crew])
    try: os.kill(target, how)
    except ProcessLookupError: pass
    patience = 60*slowness(again=True).wall
    code, end = p.wait(patience), time.monotonic() + patience
    while any(map(alive, crew)):   # those it had started die with it
        if time.monotonic() > end: raise AssertionError('a process lives on')
        time.sleep(.1)
    if k == 1: return code, 'the process'
    return code, 'the one that started two' if target == p.pid else f'process {crew.index(target)} of two'

def one_kill(folder, name, k, how, wait, rng):
    "Kill a training, look at what is left, resume it; a sentence of what happened."
    from xray_ct.training import read_state
    run = folder/name
    code, who = killed(folder, name, k, how, wait, rng)
    left, rest = readable(run), len(list(run.rglob('.*.tmp')))
    state = run/'state.safetensors'
    head = read_state(state)[1] if state.exists() else dict(epoch=0, step=0)
    assert start(folder, name, k).wait() == 0, (folder/f'{name}.log').read_text()[-4000:]
    same(run, folder/f'plain{k}')
    readable(run)
    assert not list(run.rglob('.*.tmp')), 'what was half-written is still there'
    shutil.rmtree(run)
    return (f'{how.name} to {who}: exit code {code}, {head["epoch"]} of 4 epochs and {head["step"]} steps saved, '
            f'{left} files readable, {rest} unfinished; resumed, same weights')

def main(n, seed):
    from xray_ct.data.phantom import write_cohort
    os.environ['OMP_NUM_THREADS'] = '1'
    folder, rng = Path(tempfile.mkdtemp(prefix='xray_ct_kill_')), random.Random(seed)
    write_cohort(folder/'cts', n=12, size=32, spacing=10.)
    length = {k: undisturbed(folder, k) for k in (1, 2)}
    for i in range(n):
        k, how = 1 + i % 2, rng.choice([signal.SIGKILL, signal.SIGTERM])
        said = one_kill(folder, f'killed{i}', k, how, rng.uniform(0, .9*length[k]), rng)
        print(f'{i + 1:3}/{n} {said}', flush=True)
    shutil.rmtree(folder)

if __name__ == '__main__':
    if sys.argv[1:2] == ['train']: train(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else: main(int(sys.argv[1]) if len(sys.argv) > 1 else 2, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
