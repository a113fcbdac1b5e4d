"""How fast this machine is at the moment, and what other CPUs would compute.

    python tools/machines.py            # the probe, compared with the machine of reference
    python tools/machines.py --list     # the machines that this CPU can stand for

Limits of time in tests are meant for the machine of reference when it is quiet. They are multiplied by how much slower
this machine is, by the probe, at the moment.
"""
import argparse, json, os, subprocess, sys, time
from collections import namedtuple
from itertools import product
from pathlib import Path

# ---------------------------------------------------------------- how fast?
reference = 'Intel Xeon with AMX at 2.6 GHz, one thread, torch 2.13'
reference_seconds = .30   # of `work` there, the best of many on the quiet machine
variable = 'XRAY_CT_SLOWNESS'   # carries what was found to child processes: processor, wall
threads = 'XRAY_CT_THREADS'     # of a notebook's tests, whatever it sets itself

Slowness = namedtuple('Slowness', 'processor wall')   # × the machine of reference
slowest = 20.   # a test that hangs must come to an end

def work():
    "What tests do, in small: convolutions, sorting and plain Python."
    import numpy as np
    import torch
    torch.set_num_threads(1)
    x, w = torch.ones(1, 16, 40, 40, 40), torch.ones(16, 16, 3, 3, 3)
    for _ in range(20): x = torch.nn.functional.conv3d(x, w, padding=1).tanh()
    for seed in range(30): np.sort(np.random.default_rng(seed).random(200_000))
    return sum(i*i for i in range(3_000_000))

def probe(n=3, enough=3.):
    "(processor, wall) seconds of `work`: the least processor time and the mean wall time of n runs, or of `enough` s."
    work()   # loads what is loaded once
    processor, wall = [], []
    while len(wall) < n and sum(wall) < enough:
        t, u = time.process_time(), time.perf_counter()
        work()
        processor.append(time.process_time() - t)
        wall.append(time.perf_counter() - u)
    return min(processor), sum(wall)/len(wall)

_found = []

def slowness(again=False):
    "How much slower than the machine of reference, in a process of its own; remembered unless `again`."
    if variable in os.environ and not again: return Slowness(*map(float, os.environ[variable].split(',')))
    if again or not _found:
        p = subprocess.run([sys.executable, __file__, '--json'], capture_output=True, text=True, check=True)
        processor, wall = (min(slowest, max(1., s/reference_seconds)) for s in json.loads(p.stdout))
        _found[:] = [Slowness(processor, max(processor, wall))]
    return _found[0]

def for_children(): os.environ[variable] = ','.join(f'{s:.2f}' for s in slowness())

# ---------------------------------------------------------------- what other CPUs would compute
Machine = namedtuple('Machine', 'aten onednn threads')

# A CPU's flags of /proc/cpuinfo, and what PyTorch's own kernels and oneDNN's may then use.
aten_needs = dict(default=[], avx2=['avx2', 'fma'], avx512=['avx512f', 'avx512bw', 'avx512vl', 'avx512dq'])
onednn_needs = dict(AVX2=['avx2'], AVX512_CORE=aten_needs['avx512'],
                    AVX512_CORE_BF16=[*aten_needs['avx512'], 'avx512_bf16'],
                    AVX512_CORE_AMX=['amx_tile', 'amx_bf16', 'amx_int8'])
# MKL multiplies PyTorch's matrices, OpenBLAS numpy's
mkl = dict(AVX2='AVX2', AVX512_CORE='AVX512', AVX512_CORE_BF16='AVX512', AVX512_CORE_AMX='AVX512')
openblas = dict(AVX2='Haswell', AVX512_CORE='SkylakeX', AVX512_CORE_BF16='SkylakeX', AVX512_CORE_AMX='SkylakeX')

def cpu_flags():
    try: text = Path('/proc/cpuinfo').read_text()
    except OSError: return set()
    return set(next((l for l in text.splitlines() if l.startswith('flags')), '').split())

def machines(flags=None):
    "Every combination of instruction sets that this CPU has, by 1 and 2 threads."
    flags = cpu_flags() if flags is None else flags
    aten, onednn = ([k for k, needed in table.items() if flags >= set(needed)] for table in (aten_needs, onednn_needs))
    return [Machine(*m) for m in product(aten, onednn or ['-'], (1, 2))]

def environment(m):
    "The variables that make a process compute as machine `m` does."
    n = str(m.threads)
    env = dict(ATEN_CPU_CAPABILITY=m.aten, OMP_NUM_THREADS=n, MKL_NUM_THREADS=n, OPENBLAS_NUM_THREADS=n)
    env[threads] = n
    if m.onednn == '-': return env
    return env | dict(ONEDNN_MAX_CPU_ISA=m.onednn, MKL_ENABLE_INSTRUCTIONS=mkl[m.onednn],
                      OPENBLAS_CORETYPE=openblas[m.onednn])

def words(m): return f'{m.aten},{m.onednn},{m.threads}'

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--list', action='store_true', help='the machines that this CPU can stand for')
    p.add_argument('--json', action='store_true', help='the probe as two numbers, for programs')
    a = p.parse_args()
    if a.list: print('\n'.join(map(words, machines())))
    elif a.json: print(json.dumps(probe()))
    else:
        processor, wall = probe()
        print(f'here: {processor:.2f} s of processor time, {wall:.2f} s by the clock')
        print(f'reference: {reference_seconds:.2f} s, {reference}')

if __name__ == '__main__': main()
