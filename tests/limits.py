"""Time and memory that a user feels: start-up of the command, and one reconstruction at 64³, start-up included.

    python tests/limits.py

On the machine of reference (tools/machines.py): `--help` and a wrong argument within 1 s, `import xray_ct` within
0.2 s, `reconstruct` within 10 s and 2 GB. Judged by processor time, which other work on the machine hardly changes,
and which is scaled by a probe of the machine; the wall clock is printed beside it.
"""
import os, resource, subprocess, sys, tempfile, time
from pathlib import Path

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root/'tools'))
from machines import slowness

# a child of its own tells its own peak of memory
peak_of = '''
import resource, subprocess, sys
rc = subprocess.run(sys.argv[1:]).returncode
print("peak", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss/2**20)
sys.exit(rc)
'''

def used(): return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])

def once(cmd, ok):
    "(processor, wall) seconds of a command, and what it printed."
    begun, before = time.perf_counter(), used()
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}   # waiting threads would count
    p = subprocess.run([str(c) for c in cmd], capture_output=True, text=True, env=env)
    assert p.returncode in ok, (cmd, p.returncode, p.stderr[-2000:])
    return used() - before, time.perf_counter() - begun, p.stdout

def timed(*cmd, ok=(0,), n=3):
    "The best of n runs, after one to warm the disk's cache."
    if n > 1: once(cmd, ok)
    return min(once(cmd, ok) for _ in range(n))

def model_and_xrays(folder):
    "The tiny preset at 64³ with a ridge base of 100 cases, as a finished run has it, and two X-rays as DICOM."
    import torch
    from xray_ct.data.cohort import CohortConfig
    from xray_ct.data.drr import make_drr
    from xray_ct.data.phantom import thorax
    from xray_ct.data.radiograph import write_xrays
    from xray_ct.models.base import Ridge
    from xray_ct.models.direct import DirectModel, direct_preset
    g = CohortConfig().geometry()
    model = DirectModel(direct_preset('tiny', g))
    x, y = torch.rand(100, 2, *g.det_shape), torch.rand(100, 1, *g.vol_shape)*2 - 1
    model.set_base(Ridge.fit(x, y, lam=1., stride=2, half=True)).save(folder/'run')
    patient = thorax(0, size=96, spacing=4.)
    lines, geometry, made = make_drr(patient, size=512, field=320.)
    write_xrays(folder/'xrays', lines, geometry, made=made)

def reconstruction(command):
    "(processor, wall) seconds and the peak of memory in GiB."
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        subprocess.run([sys.executable, __file__, 'make', d], check=True)
        xrays = d/'xrays/ap.dcm', d/'xrays/lat.dcm'
        reconstruct = [*command, 'reconstruct', *xrays, '-o', d/'out', '--weights', d/'run']
        cpu, wall, out = timed(sys.executable, '-c', peak_of, *reconstruct, n=1)
    return cpu, wall, float(out.split('peak')[1])

def main():
    xray_ct, slow = [sys.executable, '-c', 'from xray_ct.cli import main; main()'], slowness().processor
    cpu, wall, gib = reconstruction(xray_ct)
    rows = [
        ('python itself', *timed(sys.executable, '-c', 'pass')[:2], 1.),
        ('import xray_ct', *timed(sys.executable, '-c', 'import xray_ct')[:2], .2),
        ('xray_ct --help', *timed(*xray_ct, '--help')[:2], 1.),
        ('a wrong argument', *timed(*xray_ct, 'drr', '--nope', ok=(2,))[:2], 1.),
        ('reconstruct at 64³', cpu, wall, 10.),
    ]
    print(f'{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}, '
          f'{slow:.2f} × the processor time of the machine of reference')
    print(f'{"seconds":24} {"processor":>9} {"wall":>6} {"limit":>6}')
    for name, cpu, wall, limit in rows: print(f'{name:24} {cpu:9.2f} {wall:6.2f} {limit*slow:6.2f}')
    print(f'reconstruct at 64³: {gib:.2f} GiB at its peak, limit 2')
    return any(cpu > limit*slow for _, cpu, _, limit in rows) or gib > 2

if __name__ == '__main__':
    if sys.argv[1:2] == ['make']: model_and_xrays(Path(sys.argv[2]))
    else: sys.exit(main())
