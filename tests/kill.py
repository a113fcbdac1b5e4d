"""Trainings killed at random moments, by `kill -9` and by SIGTERM, in one process and in two: each is resumed, and ends in
the weights of one that nobody disturbed, to the last bit. What a kill leaves behind can be read.

    python tests/kill.py        # 2 kills, for CI
    python tests/kill.py 20     # so many; with a second argument, of that seed
"""
import csv, json, os, random, shutil, signal, subprocess, sys, tempfile, time
from pathlib import Path

def settings():
    from xray_ct.data.cohort import CohortConfig
    from xray_ct.training import RunConfig, with_settings
    config = RunConfig(epochs=4, passes=3, cohort=CohortConfig(size=16, spacing=20., det=32))
    return with_settings(config, dict(widths='16,32', down_blocks='0,1', up_blocks='1', encoder_width='16'))

def train(folder, name, processes):
    from xray_ct.distributed import fit_by
    fit_by(processes, settings(), folder/'cts', folder/name, folder/'cache')

def start(folder, name, processes):
    return subprocess.Popen([sys.executable, __file__, 'train', str(folder), name, str(processes)], stdout=open(folder/f'{name}.log', 'a'), stderr=subprocess.STDOUT)

def children(pid):
    try: return [int(c) for c in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]
    except OSError: return []

def alive(pid):
    try: return Path(f'/proc/{pid}/stat').read_text().split(')')[-1].split()[0] != 'Z'
    except OSError: return False

def readable(run):
    "Every file of a run folder that isn't half of one that was never finished (those begin with a dot) can be read."
    from PIL import Image
    from safetensors import safe_open
    from xray_ct.training import read_state
    files = [p for p in run.rglob('*') if p.is_file() and not any(part.startswith('.') for part in p.relative_to(run).parts)]
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

def main(n, seed):
    from xray_ct.data.phantom import write_cohort
    from xray_ct.training import read_state
    os.environ['OMP_NUM_THREADS'] = '1'
    folder, rng, length = Path(tempfile.mkdtemp(prefix='xray_ct_kill_')), random.Random(seed), {}
    write_cohort(folder/'cts', n=12, size=32, spacing=10.)
    for k in (1, 2):  # undisturbed; how long it trains once it has begun
        p = start(folder, f'plain{k}', k)
        while not (folder/f'plain{k}'/'run.json').exists() and p.poll() is None: time.sleep(.02)
        t = time.monotonic()
        assert p.wait() == 0, (folder/f'plain{k}.log').read_text()
        length[k] = time.monotonic() - t
        print(f'{k} process{"es"*(k > 1)}: {length[k]:.1f} s', flush=True)
    for i in range(n):
        k, how, name = 1 + i % 2, rng.choice([signal.SIGKILL, signal.SIGTERM]), f'killed{i}'
        p = start(folder, name, k)
        while not (folder/name/'run.json').exists() and p.poll() is None: time.sleep(.005)
        time.sleep(rng.uniform(0, .9*length[k]))
        crew = children(p.pid) if k > 1 else []
        target = rng.choice([p.pid, *crew])
        try: os.kill(target, how)
        except ProcessLookupError: pass
        code = p.wait(60)
        for _ in range(300):                                                                # those it had started die with it
            if not any(map(alive, crew)): break
            time.sleep(.1)
        else: raise AssertionError('a process lives on')
        left, rest = readable(folder/name), len(list((folder/name).rglob('.*.tmp')))
        head = read_state(state)[1] if (state := folder/name/'state.safetensors').exists() else dict(epoch=0, step=0)
        assert start(folder, name, k).wait() == 0, (folder/f'{name}.log').read_text()[-4000:]
        same(folder/name, folder/f'plain{k}')
        readable(folder/name)
        assert not list((folder/name).rglob('.*.tmp')), 'what was half-written is still there'
        who = 'the process' if k == 1 else 'the one that started two' if target == p.pid else f'process {crew.index(target)} of two'
        print(f'{i + 1:3}/{n} {how.name} to {who}: exit code {code}, {head["epoch"]} of 4 epochs and {head["step"]} steps saved, {left} files readable, {rest} unfinished; resumed, same weights', flush=True)
        shutil.rmtree(folder/name)
    shutil.rmtree(folder)

if __name__ == '__main__':
    if sys.argv[1:2] == ['train']: train(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else: main(int(sys.argv[1]) if len(sys.argv) > 1 else 2, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
