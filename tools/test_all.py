"""All tests of the repository, each item in a process of its own with a time limit.

    python tools/test_all.py                       # what `make test` runs: checks, runs (small), notebooks
    python tools/test_all.py --flags slow          # what `make test-slow` runs: cells flagged `#| slow`, tests/*.py
    python tools/test_all.py --only 11_dicom       # items whose name contains this (or matches this glob)
    python tools/test_all.py --list

The last line is `N passed, N failed` (and `, N skipped` where there are any); the exit code is 1 if anything failed
or nothing was run. A script in tests/ that ends with code 77 counts as skipped. A notebook's line that begins with
`skipped` is shown beside its result.
"""
import argparse, ast, fnmatch, os, re, shutil, signal, subprocess, sys, tempfile, threading, time
from concurrent.futures import ThreadPoolExecutor, as_completed
from configparser import ConfigParser
from functools import partial
from pathlib import Path
import nbformat

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root/'tools'))
import readme
config = ConfigParser(delimiters=['='])
config.read(root/'settings.ini', encoding='utf-8')
flags_known = config['DEFAULT']['tst_flags'].split()
max_kb, max_lines = 600, 60   # of a notebook, of an exported cell
leaves = ['*.html', 'metrics.json', '**/*.safetensors', '**/config.json', '**/*.nii.gz', '**/*.dcm']   # what a training run leaves in its folder
must_leave = {'quickstart': leaves, 'direct': leaves}                                                 # any other run: its metrics

class Skip(Exception): pass
class Failure(Exception): pass

# ---------------------------------------------------------------- processes
running = set()

def process(cmd, timeout, cwd=root, **env):
    "Run a command without stdin; its exit code and what it printed. The whole process group dies at the time limit."
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'PASSIVE', 'PYTHONUNBUFFERED': '1', **env}
    p = subprocess.Popen([str(c) for c in cmd], cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         text=True, errors='replace', start_new_session=True)
    running.add(p)
    try: return (p.communicate(timeout=timeout)[0], p.returncode)[::-1]
    except subprocess.TimeoutExpired:
        kill(p)
        return 124, p.communicate()[0] + f'\nstopped: longer than {timeout:.0f} s'
    finally: running.discard(p)

def kill(p):
    try: os.killpg(p.pid, signal.SIGKILL)
    except ProcessLookupError: pass

def python(*args, timeout=120, **kw): return process([sys.executable, *args], timeout, **kw)

def tail(text, n=60):
    lines = [l for l in re.sub(r'\x1b\[[\d;]*m', '', text).rstrip().splitlines() if 'IPKernelApp' not in l]
    return '\n'.join((['…'] if len(lines) > n else []) + lines[-n:])

# ---------------------------------------------------------------- notebooks
def notebooks():
    files = (root/'nbs').rglob('*.ipynb')
    return sorted(f for f in files if not any(p.startswith(('_', '.')) for p in f.relative_to(root).parts))

def name(path): return path.relative_to(root).as_posix()
def is_run(path): return path.parent.name == 'runs'
def code(path): return [c for c in nbformat.read(path, 4).cells if c.cell_type == 'code']
def directive(cell, words): return re.search(rf'^\s*#\|\s*({words})\b', cell.source, re.M)
def exported(path): return [c for c in code(path) if directive(c, 'exporti?|exports')]
def flagged(path, flags): return any(directive(c, '|'.join(flags)) for c in code(path))
def tagged(path, tag): return [c for c in code(path) if tag in c.metadata.get('tags', [])]

# ---------------------------------------------------------------- checks: each returns a list of problems
def copy_and(command):
    "Run an nbdev command in a copy of the notebooks and the settings; yield nothing but the copy's folder."
    folder = Path(tempfile.mkdtemp(prefix='xray_ct_test_'))
    shutil.copytree(root/'nbs', folder/'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints', '__pycache__'))
    shutil.copy(root/'settings.ini', folder)
    (folder/'xray_ct').mkdir(); shutil.copy(root/'xray_ct/__init__.py', folder/'xray_ct')
    rc, out = python('-c', command, cwd=folder)
    if rc: shutil.rmtree(folder); raise Failure(tail(out))
    return folder

def check_sync():
    "The package is exactly what the notebooks export, in a copy that starts from nothing."
    folder = copy_and('from nbdev import nbdev_export; nbdev_export()')
    files = lambda top: {p.relative_to(top).as_posix(): p.read_bytes() for p in (top/'xray_ct').rglob('*.py')}
    made, ours = files(folder), files(root)
    shutil.rmtree(folder)
    return [f'{f}: ' + ('no notebook exports it' if f not in made else 'missing' if f not in ours else 'differs') + ', run nbdev_export'
            for f in sorted({*made, *ours}) if made.get(f) != ours.get(f)]

def check_clean():
    "nbdev_clean would change nothing."
    folder = copy_and('from nbdev.clean import nbdev_clean; nbdev_clean.__wrapped__()')
    out = [f'{name(f)}: run nbdev_clean' for f in notebooks() if (folder/f.relative_to(root)).read_bytes() != f.read_bytes()]
    shutil.rmtree(folder)
    return out

def check_executed():
    "Every notebook is saved with its outputs, and none of them is an error or names a place on somebody's machine."
    out = []
    for f in notebooks():
        cells = code(f)
        plain = [c for c in cells if c.source.strip() and not directive(c, 'default_exp|exporti?|exports|hide|' + '|'.join(flags_known))]
        if plain and not any(c.outputs for c in cells): out.append(f'{name(f)}: no output is saved, run `make notebook NB={name(f)}`')
        if any(o.output_type == 'error' for c in cells for o in c.outputs): out.append(f'{name(f)}: a saved output is an error')
        text = f.read_text(encoding='utf-8')
        out += [f'{name(f)}: names a place on one machine, {m}' for m in {str(root), str(Path.home())} - {'/'} if m + '/' in text]
    return out

def check_form():
    "The house rules that a program can see."
    out = []
    for f in notebooks():
        nb, say = nbformat.read(f, 4), lambda text, f=f: out.append(f'{name(f)}: {text}')
        head = nb.cells[0].source if nb.cells and nb.cells[0].cell_type == 'markdown' else ''
        if not (head.startswith('# ') and re.search(r'^> \S', head, re.M)): say('begins with no `# Title` and `> sentence`')
        k = nb.metadata.get('kernelspec', {})
        if k.get('name') != 'python3' or k.get('language') != 'python': say(f'kernelspec is {dict(k)}, not python3 with its language')
        if nb.nbformat_minor < 5: say('is older than nbformat 4.5: cells have no ids')
        if 'widgets' in nb.metadata: say('widget state is saved in it')
        if f.stat().st_size > max_kb*1000: say(f'{f.stat().st_size//1000} kB, more than {max_kb}')
        if any(re.search(r'skip_exec:\s*true', c.source) for c in nb.cells): say('skip_exec hides it from the tests')
        for c in exported(f):
            lines, first = len(c.source.splitlines()), next((l for l in c.source.splitlines() if l.strip() and not l.startswith('#')), '')
            if lines > max_lines: say(f'an exported cell of {lines} lines ({first[:60]})')
            if directive(c, '|'.join(flags_known)): say(f'a flag drops an exported cell ({first[:60]})')
            if re.search(r'^\s*from .+ import \*|^\s*(from|import) (fastai\.(vision|medical)|torchvision)', c.source, re.M): say(f'an import that is not allowed in exports ({first[:60]})')
        if not (is_run(f) or f.stem == 'index') and not re.search(r'\b(assert|test_\w+|expect_fail|allclose)\b', '\n'.join(c.source for c in code(f))): say('nothing is asserted in it')
    return out

def check_layers():
    "A module imports only from notebooks before its own: reading order is dependency order."
    modules = {m[1]: f for f in notebooks() for c in code(f) if (m := re.search(r'^\s*#\|\s*default_exp\s+(\S+)', c.source, re.M))}
    out = []
    for module, f in modules.items():
        for node in ast.walk(ast.parse('\n'.join(re.sub(r'^[%!].*$', '', c.source, flags=re.M) for c in exported(f)))):
            names = [node.module] + [f'{node.module}.{a.name}' for a in node.names] if isinstance(node, ast.ImportFrom) and node.module else \
                    [a.name for a in node.names] if isinstance(node, ast.Import) else []
            for n in names:
                other = n.removeprefix('xray_ct.')
                if n.startswith('xray_ct.') and other in modules and modules[other].stem >= f.stem and other != module:
                    out.append(f'{name(f)} imports xray_ct.{other}, which comes later ({modules[other].stem})')
    return sorted(set(out))

def check_runs():
    "Each run notebook has one parameters cell, checked in the next code cell, and values for a quick run."
    out = []
    for f in filter(is_run, notebooks()):
        cells, found = code(f), tagged(f, 'parameters')
        if len(found) != 1: out.append(f'{name(f)}: {len(found)} cells are tagged `parameters`; papermill would use the wrong values'); continue
        after = cells[[c.id for c in cells].index(found[0].id) + 1:][:1]
        if not after or 'check_parameters(' not in after[0].source: out.append(f'{name(f)}: the cell after the parameters doesn\'t call check_parameters')
        if not re.search(r'^out\s*=', found[0].source, re.M): out.append(f'{name(f)}: has no parameter `out`')
        if not smoke_parameters(f): out.append(f'{name(f)}: no parameter says `(smoke: value)`')
    if not (root/'nbs/runs/.notest').exists(): out.append('nbs/runs/.notest is missing: nbdev_test would run the full trainings')
    return out

def check_readme():
    "README.md is what nbs/index.ipynb says, its links exist, and it names every notebook."
    text = (root/'nbs/index.ipynb').read_text(encoding='utf-8')
    return readme.stale() + [f'nbs/index.ipynb does not name {f.name}' for f in notebooks() if f.stem != 'index' and f.name not in text]

def best(cmd, n=5):
    "The fastest of n runs in seconds, and the last run's exit code and output."
    times = []
    for _ in range(n):
        t = time.perf_counter(); rc, out = process(cmd, 60); times.append(time.perf_counter()-t)
    return min(times), rc, out

def check_import():
    "`import xray_ct` takes at most 0.2 s."
    clock = 'import time; t = time.perf_counter(); import xray_ct; print(time.perf_counter() - t)'
    outs = [python('-c', clock) for _ in range(5)]
    if any(rc for rc, _ in outs): return [tail(outs[0][1])]
    t = min(float(out) for _, out in outs)
    return [f'import xray_ct takes {t:.2f} s'] if t > .2 else []

def check_command():
    "`xray_ct --help` and a wrong argument answer within 1 s, the latter with exit code 2 and no traceback."
    out = []
    for args, want in ((['--help'], 0), (['train', '--no-such-option'], 2), (['no-such-command'], 2)):
        t, rc, text = best([Path(sys.executable).parent/'xray_ct', *args], 3)
        if t > 1: out.append(f'xray_ct {" ".join(args)}: {t:.2f} s')
        if rc != want or 'Traceback' in text: out.append(f'xray_ct {" ".join(args)}: exit code {rc}, not {want}\n{tail(text, 10)}')
    return out

def checked(function):
    problems = function()
    if problems: raise Failure('\n'.join(problems))

# ---------------------------------------------------------------- notebooks and runs
in_child = """
import sys
from execnb.shell import CaptureShell
from nbdev.test import nbdev_test
cell = CaptureShell.cell
CaptureShell.cell = lambda self, c, **kw: cell(self, c, **{**kw, 'verbose': True})   # show what a cell prints
nbdev_test(path=sys.argv[1], flags=sys.argv[2], n_workers=0)
"""

def test_notebook(path, flags, timeout):
    rc, out = python('-c', in_child, path, ' '.join(flags), timeout=timeout, MPLBACKEND='agg')
    if rc or 'Success.' not in out: raise Failure(tail(out))
    return '; '.join(dict.fromkeys(l.strip() for l in out.splitlines() if l.lower().startswith('skipped')))

def smoke_parameters(path):
    "The values that a run notebook's parameters give for a quick run: `epochs = 20  # passes (smoke: 1)` → `epochs: 1`."
    return {m[1]: m[2] for c in tagged(path, 'parameters') for m in re.finditer(r'^(\w+)\s*=.*#.*\(smoke:\s*(.+)\)\s*$', c.source, re.M)}

def papermill(path, folder, parameters, timeout):
    yaml = '{' + ', '.join(f'{k}: {v}' for k, v in parameters.items()) + '}'
    return python('-m', 'papermill', path, folder/path.name, '-y', yaml, '--log-output', '--no-progress-bar', timeout=timeout)

def test_run(path, timeout):
    "A run notebook by papermill with its smoke parameters: it ends well and leaves its results."
    with tempfile.TemporaryDirectory(prefix='xray_ct_run_') as folder:
        folder = Path(folder)
        rc, out = papermill(path, folder, {**smoke_parameters(path), 'out': f'"{folder}"'}, timeout)
        if rc: raise Failure(tail(out))
        cells = code(folder/path.name)
        tags = [t for c in cells for t in c.metadata.get('tags', []) if t in ('parameters', 'injected-parameters')]
        if tags != ['parameters', 'injected-parameters']: raise Failure(f'the executed notebook\'s cells are tagged {tags}')
        missing = [p for p in must_leave.get(path.stem, ['metrics.json']) if not any(folder.glob(p))]
        if missing: raise Failure(f'left no {", ".join(missing)} in its folder, only {", ".join(sorted(p.name for p in folder.iterdir()))}')

def test_refusal(path, timeout):
    "A parameter that the notebook doesn't know ends the run at once."
    with tempfile.TemporaryDirectory(prefix='xray_ct_run_') as folder:
        rc, out = papermill(path, Path(folder), {**smoke_parameters(path), 'out': f'"{folder}"', 'no_such_parameter': 1}, timeout)
        if rc != 1 or "unknown parameter 'no_such_parameter'" not in out: raise Failure(f'an unknown parameter was not refused (exit code {rc})\n{tail(out, 20)}')

def test_script(path, timeout):
    rc, out = python(path, timeout=timeout)
    if rc == 77: raise Skip(tail(out, 3))
    if rc: raise Failure(tail(out))

def tree():
    "Every file that a test might have touched, with its time."
    ignored = {'.git', '.venv', '__pycache__', '.ipynb_checkpoints', 'build', 'dist', '.hypothesis'}
    out = {}
    for folder, names, files in os.walk(root):
        names[:] = [n for n in names if n not in ignored and not n.endswith('.egg-info') and not (folder == str(root) and n in ('runs', '_docs', '_proc'))]
        out.update({(p := os.path.join(folder, f)): os.stat(p).st_mtime_ns for f in files})
    return out

# ---------------------------------------------------------------- the whole
checks = [('package in sync', check_sync), ('notebooks clean', check_clean), ('notebooks executed', check_executed), ('house rules', check_form),
          ('layers', check_layers), ('run notebooks', check_runs), ('README in sync', check_readme), ('import in 0.2 s', check_import), ('command line in 1 s', check_command)]

def items(a):
    "(name, function, alone?) of everything to run; the long ones first, so that no worker waits for them at the end."
    nbs = notebooks()
    limit = a.timeout or (1500 if a.flags else 300)
    if a.flags:
        tests = [(name(f), partial(test_script, f, limit), False) for f in sorted((root/'tests').glob('*.py'))]
        return tests + [(f'{name(f)} [{" ".join(a.flags)}]', partial(test_notebook, f, a.flags, limit), False) for f in nbs if not is_run(f) and flagged(f, a.flags)]
    runs = [f for f in nbs if is_run(f)]
    return ([(f'check: {n}', partial(checked, f), True) for n, f in checks] +
            [(f'{name(f)} [run]', partial(test_run, f, limit), False) for f in runs] +
            [(f'{name(f)} [unknown parameter]', partial(test_refusal, f, limit), False) for f in runs] +
            [(name(f), partial(test_notebook, f, [], limit), False) for f in nbs if not is_run(f)])

def run_item(item):
    "(status, seconds, text)"
    t = time.time()
    try: status, text = 'PASS', item[1]() or ''
    except Skip as e: status, text = 'SKIP', str(e)
    except Failure as e: status, text = 'FAIL', str(e)
    except Exception as e: status, text = 'FAIL', f'{type(e).__name__}: {e}'
    return status, time.time()-t, text

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--flags', nargs='*', default=[], choices=flags_known, help='run the notebooks that have cells with these flags, those cells included, and tests/*.py')
    p.add_argument('--only', default='', metavar='PATTERN', help='items whose name contains this or matches this glob')
    p.add_argument('--workers', type=int, default=2)
    p.add_argument('--timeout', type=float, help='seconds an item may take (300; with flags 1500)')
    p.add_argument('--list', action='store_true', help='show the items and stop')
    a = p.parse_args()
    todo = [i for i in items(a) if a.only in i[0] or fnmatch.fnmatch(i[0], a.only)]
    if a.list: print('\n'.join(i[0] for i in todo)); return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)   # stopped from outside: take the children along
    before, start, done = tree(), time.time(), []
    total = len(todo) + 1
    def report(item, status, seconds, text):
        done.append((item, status, seconds))
        note = f'  ({text})' if text and status != 'FAIL' else ''
        print(f'[{len(done):3}/{total}] {status} {seconds:6.1f} s  {item}{note}', flush=True)
        if status == 'FAIL': print('\n'.join('    ' + l for l in text.splitlines()), flush=True)
    for i in [i for i in todo if i[2]]: report(i[0], *run_item(i))   # alone: some of them are about time
    with ThreadPoolExecutor(a.workers) as pool:
        jobs = {pool.submit(run_item, i): i[0] for i in todo if not i[2]}
        try:
            for job in as_completed(jobs): report(jobs[job], *job.result())
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for q in list(running): kill(q)
            raise SystemExit('interrupted')
    after = tree()
    changed = sorted(os.path.relpath(f, root) for f in {*before, *after} if before.get(f) != after.get(f))
    report('check: the tests leave the tree as it was', *(('FAIL', 0., 'changed while they ran: ' + ', '.join(changed[:10])) if changed else ('PASS', 0., '')))
    if len(done) > 8:
        print('\nslowest:', *(f'  {s:6.1f} s  {n}' for n, _, s in sorted(done, key=lambda d: -d[2])[:6]), sep='\n')
    failed = [n for n, status, _ in done if status == 'FAIL']
    if failed: print('\nfailed:', *(f'  {n}' for n in failed), sep='\n')
    if not todo: print(f'no test matches {a.only!r}')
    skipped = sum(status == 'SKIP' for _, status, _ in done)
    print(f'\n{len(done)} tests in {time.time()-start:.0f} s')
    print(f'{len(done)-len(failed)-skipped} passed, {len(failed)} failed' + (f', {skipped} skipped' if skipped else ''))
    return int(bool(failed) or not todo)

if __name__ == '__main__': sys.exit(main())
