"""All tests of the repository, each item in a process of its own with a time limit.

    python tools/test_all.py                       # what `make test` runs: checks, runs (small), notebooks
    python tools/test_all.py --flags slow          # what `make test-slow` runs: cells flagged `#| slow`, tests/*.py
    python tools/test_all.py --machines            # what `make test-machines` runs: numeric notebooks as on other CPUs
    python tools/test_all.py --only 12_dicom       # items whose name contains this (or matches this glob)
    python tools/test_all.py --list

The last line is `N passed, N failed` (and `, N skipped` where there are any); the exit code is 1 if anything failed
or nothing was run. A script in tests/ that ends with code 77 counts as skipped. A notebook's line that begins with
`skipped` is shown beside its result.

Limits of time are generous: an item takes less than a minute on the machine of reference (tools/machines.py) and may
take five. They are multiplied by how much slower this machine is at the start, and again where a limit is reached.
"""
import argparse, fnmatch, os, re, shutil, signal, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
import machines
from checks import checks, smoke_parameters
from common import (Failure, Skip, code, flagged, flags_known, is_run, kill, module_of, name, notebooks, python, root,
                    running, tail, test_notebook)

# what a training run leaves in its folder; any other run: its metrics
leaves = ['*.html', 'metrics.json', '**/*.safetensors', '**/config.json', '**/*.nii.gz', '**/*.dcm']
must_leave = {'quickstart': leaves, 'direct': leaves}

# Notebooks whose results do not depend on the CPU's arithmetic: files, texts, pictures, processes.
not_numeric = [f'{n}_' for n in '00 01 02 10 11 12 29 39 50 61 63 73 74 75 76 77'.split()]

# ---------------------------------------------------------------- the kinds of items
def checked(function):
    problems = function()
    if problems: raise Failure('\n'.join(problems))

def papermill(path, folder, parameters, timeout):
    yaml = '{' + ', '.join(f'{k}: {v}' for k, v in parameters.items()) + '}'
    command = ['-m', 'papermill', path, folder/path.name, '-y', yaml, '--log-output', '--no-progress-bar']
    return python(*command, timeout=timeout)

def test_run(path, timeout):
    "A run notebook by papermill with its smoke parameters: it ends well and leaves its results."
    with tempfile.TemporaryDirectory(prefix='xray_ct_run_') as folder:
        folder = Path(folder)
        rc, out = papermill(path, folder, {**smoke_parameters(path), 'out': f'"{folder}"'}, timeout)
        if rc: raise Failure(tail(out))
        tags = [t for c in code(folder/path.name) for t in c.metadata.get('tags', [])]
        tags = [t for t in tags if t in ('parameters', 'injected-parameters')]
        if tags != ['parameters', 'injected-parameters']:
            raise Failure(f'the executed notebook\'s cells are tagged {tags}')
        missing = [p for p in must_leave.get(path.stem, ['metrics.json']) if not any(folder.glob(p))]
        if missing:
            there = ', '.join(sorted(p.name for p in folder.iterdir()))
            raise Failure(f'left no {", ".join(missing)} in its folder, only {there}')

def test_refusal(path, timeout):
    "A parameter that the notebook does not know ends the run at once."
    with tempfile.TemporaryDirectory(prefix='xray_ct_run_') as folder:
        parameters = {**smoke_parameters(path), 'out': f'"{folder}"', 'no_such_parameter': 1}
        rc, out = papermill(path, Path(folder), parameters, timeout)
        if rc != 1 or "unknown parameter 'no_such_parameter'" not in out:
            raise Failure(f'an unknown parameter was not refused (exit code {rc})\n{tail(out, 20)}')

def test_script(path, timeout):
    rc, out = python(path, timeout=timeout)
    if rc == 77: raise Skip(tail(out, 3))
    if rc: raise Failure(tail(out))

def tree():
    "Every file that a test might have touched, with its time."
    ignored = {'.git', '.venv', '__pycache__', '.ipynb_checkpoints', 'build', 'dist', '.hypothesis'}
    at_the_top = {'runs', '_docs', '_proc'}
    out = {}
    for folder, names, files in os.walk(root):
        skip = ignored | (at_the_top if folder == str(root) else set())
        names[:] = [n for n in names if n not in skip and not n.endswith('.egg-info')]
        for f in files:
            path = os.path.join(folder, f)
            out[path] = os.stat(path).st_mtime_ns
    return out

# ---------------------------------------------------------------- what is to be run
def items(a):
    "(name, function, alone?) of everything to run; the long ones first, so that no worker waits for them at the end."
    nbs = notebooks()
    if a.machines is not None: return machine_items(nbs, a)
    limit = a.timeout or (1500 if a.flags else 300)
    if a.flags:
        tests = [(name(f), partial(test_script, f, limit), False) for f in sorted((root/'tests').glob('*.py'))]
        with_flags = [f for f in nbs if not is_run(f) and flagged(f, a.flags)]
        title = ' '.join(a.flags)
        return tests + [(f'{name(f)} [{title}]', partial(test_notebook, f, a.flags, limit), False) for f in with_flags]
    runs = [f for f in nbs if is_run(f)]
    return ([(f'check: {n}', partial(checked, f), True) for n, f in checks.items()] +
            [(f'{name(f)} [run]', partial(test_run, f, limit), False) for f in runs] +
            [(f'{name(f)} [unknown parameter]', partial(test_refusal, f, limit), False) for f in runs] +
            [(name(f), partial(test_notebook, f, [], limit), False)
             for f in sorted(nbs, key=lambda f: f.stem != 'colab') if not is_run(f)])

def numeric(f): return not is_run(f) and not f.stem.startswith(tuple(not_numeric)) and module_of(f)

def machine_items(nbs, a):
    "The numeric notebooks, as each machine would compute them that this CPU can stand for."
    limit = a.timeout or 900   # an old instruction set takes two or three times as long
    wanted = (a.machines or '*').split()
    def is_wanted(m): return any(fnmatch.fnmatch(machines.words(m), w) for w in wanted)
    chosen = list(filter(is_wanted, machines.machines()))
    return [(f'{name(f)} [{machines.words(m)}]', partial(test_notebook, f, [], limit, **machines.environment(m)), False)
            for m in chosen for f in nbs if numeric(f)]

def table(done):
    "A row a notebook, a column a machine: what passed, what failed."
    found = {}
    for item, status, _ in done:
        if match := re.fullmatch(r'(.+) \[(.+,.+,.+)\]', item): found.setdefault(match[1], {})[match[2]] = status
    columns = list(dict.fromkeys(m for row in found.values() for m in row))
    print('\nmachines (kernels of PyTorch, of oneDNN, threads):')
    for i, m in enumerate(columns, 1): print(f'  {i:2}  {m}')
    print('\n' + ' '*28 + ''.join(f'{i:>6}' for i in range(1, len(columns) + 1)))
    for notebook, row in sorted(found.items()):
        print(f'{notebook:28}' + ''.join(f'{row.get(m, ""):>6}' for m in columns))

# ---------------------------------------------------------------- the whole
def run_item(item):
    "(status, seconds, text)"
    t = time.time()
    try: status, text = 'PASS', item[1]() or ''
    except Skip as e: status, text = 'SKIP', str(e)
    except Failure as e: status, text = 'FAIL', str(e)
    except Exception as e: status, text = 'FAIL', f'{type(e).__name__}: {e}'
    return status, time.time()-t, text

def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--flags', nargs='*', default=[], choices=flags_known,
                   help='the notebooks that have cells with these flags, those cells included, and tests/*.py')
    p.add_argument('--machines', nargs='?', const='', metavar='PATTERN',
                   help="the numeric notebooks as other CPUs compute them; globs choose machines, '*,AVX2,1 avx2,*'")
    p.add_argument('--only', default='', metavar='PATTERN', help='items whose name contains this or matches this glob')
    p.add_argument('--workers', type=int, default=2, help='items at the same time')
    p.add_argument('--timeout', type=float,
                   help='seconds that an item may take on a quiet machine; default 300, with flags 1500, machines 900')
    p.add_argument('--list', action='store_true', help='show the items and stop')
    return p.parse_args()

def run_all(todo, workers, report):
    "Run the items, those that want to be alone first."
    for i in [i for i in todo if i[2]]: report(i[0], *run_item(i))   # some of them are about time
    with ThreadPoolExecutor(workers) as pool:
        jobs = {pool.submit(run_item, i): i[0] for i in todo if not i[2]}
        try:
            for job in as_completed(jobs): report(jobs[job], *job.result())
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for p in list(running): kill(p)
            raise SystemExit('interrupted')

def untouched(before):
    "(status, seconds, text) of the check that no test changed the repository."
    after = tree()
    changed = sorted(os.path.relpath(f, root) for f in {*before, *after} if before.get(f) != after.get(f))
    return ('FAIL', 0., 'changed while they ran: ' + ', '.join(changed[:10])) if changed else ('PASS', 0., '')

def summary(done, seconds):
    "What is said at the end; the number of failures."
    if len(done) > 8:
        print('\nslowest:')
        for n, _, s in sorted(done, key=lambda d: -d[2])[:6]: print(f'  {s:6.1f} s  {n}')
    failed = [n for n, status, _ in done if status == 'FAIL']
    if failed: print('\nfailed:', *(f'  {n}' for n in failed), sep='\n')
    skipped = sum(status == 'SKIP' for _, status, _ in done)
    print(f'\n{len(done)} tests in {seconds:.0f} s')
    print(f'{len(done)-len(failed)-skipped} passed, {len(failed)} failed' + (f', {skipped} skipped' if skipped else ''))
    return len(failed)

def main():
    a = arguments()
    todo = [i for i in items(a) if a.only in i[0] or fnmatch.fnmatch(i[0], a.only)]
    if a.list:
        print('\n'.join(i[0] for i in todo))
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)   # stopped from outside: take the children along
    slow = machines.slowness()
    machines.for_children()
    if slow.wall > 1.2:
        print(f'This machine is {slow.wall:.1f} times slower than the machine of reference; so are the limits of time.')
    where = tempfile.gettempdir()
    free = shutil.disk_usage(where).free/1e9
    if free < 5: print(f'Only {free:.1f} GB are free in {where}; the tests may need 5. TMPDIR can name another folder.')
    before, start, done = tree(), time.time(), []
    def report(item, status, seconds, text):
        done.append((item, status, seconds))
        note = f'  ({text})' if text and status != 'FAIL' else ''
        print(f'[{len(done):3}/{len(todo) + 1}] {status} {seconds:6.1f} s  {item}{note}', flush=True)
        if status == 'FAIL': print('\n'.join('    ' + l for l in text.splitlines()), flush=True)
    run_all(todo, a.workers, report)
    report('check: the tests leave the tree as it was', *untouched(before))
    if a.machines is not None: table(done)
    if not todo: print(f'no test matches {a.only!r}')
    return int(bool(summary(done, time.time() - start)) or not todo)

if __name__ == '__main__': sys.exit(main())
