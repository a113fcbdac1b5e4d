"""Plant small faults one by one and see which of them the tests catch.

    python tools/mutate.py                  # the whole list of tools/mutants.py; the score and the survivors
    python tools/mutate.py --only consist   # faults whose text or catcher contains this; family:losses for a family
    python tools/mutate.py --find           # only check that every fault's text still exists, once

A fault is a text of an exported cell and what stands there instead. It is applied to the cell and to the module in a
copy of the repository; then the notebooks and scripts that should catch it run until their first failure. A notebook
that exports the fault runs once without it up to that cell and is forked there, so that a fault costs only the rest.
A text that is no longer found, or found twice, is an error and counts as not caught: the list cannot rot.
"""
import argparse, importlib, json, os, re, runpy, shutil, signal, subprocess, sys, tempfile, time, traceback
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

os.environ |= dict(OMP_NUM_THREADS='1', OMP_WAIT_POLICY='PASSIVE', ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS='1')
os.environ |= dict(MPLBACKEND='agg', PYTHONDONTWRITEBYTECODE='1', IN_TEST='1')
sys.dont_write_bytecode = True
import nbformat

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root/'tools'))
from mutants import families

# what every notebook imports sooner or later: imported once, then forked
heavy = 'torch numpy fastcore.test IPython execnb.shell SimpleITK pydicom matplotlib.figure PIL.Image typer'
minutes = 15   # that one run may take; longer counts as caught

@dataclass
class Mutant:
    "One small fault."
    family: str
    old: str                 # occurs once in the exported cells
    new: str
    catchers: tuple = ()     # names of notebooks without their number, or scripts; default: where the text stands
    why: str = ''            # of a survivor that is known: why nothing catches it
    notebook: Path = None    # where it was found, relative to the root
    cell: int = -1
    module: Path = None
    status: str = 'survived'
    note: str = ''
    tried: list = field(default_factory=list)

# ---------------------------------------------------------------- the list
def exported_cells(top):
    "(notebook, index, text, module) of every exported cell."
    for path in sorted((top/'nbs').glob('*.ipynb')):
        cells = nbformat.read(path, 4).cells
        sources = [c.source if c.cell_type == 'code' else '' for c in cells]
        name = next((m[1] for s in sources if (m := re.search(r'^#\|\s*default_exp\s+(\S+)', s, re.M))), None)
        if not name: continue
        module = Path('xray_ct', *name.split('.')).with_suffix('.py')
        for i, source in enumerate(sources):
            if re.search(r'^#\|\s*exports?\b', source, re.M): yield path.relative_to(top), i, source, module

def read_list(top):
    "Every mutant with the place where its text stands; one that has none, or several, is an error."
    cells, mutants = list(exported_cells(top)), []
    for family, rows in families.items():
        for old, new, *rest in rows:
            catchers = tuple(r for r in rest if not r.startswith('why: '))
            why = ''.join(r[5:] for r in rest if r.startswith('why: '))
            m = Mutant(family, old, new, catchers, why)
            found = [(*c[:2], c[3]) for c in cells if old in c[2]]
            times = sum(c[2].count(old) for c in cells)
            if times == 1: m.notebook, m.cell, m.module = found[0]
            if times == 1 and (n := (top/m.module).read_text(encoding='utf-8').count(old)) != 1:
                times = n
                m.note = f'{n} times in {m.module}'
            if times != 1: m.status, m.note = 'error', m.note or f'its text stands {times} times in exported cells'
            if old == new: m.status, m.note = 'error', 'changes nothing'
            mutants.append(m)
    return mutants

def catcher_path(top, name, m):
    "The notebook or script that a catcher's name means."
    if not name: return m.notebook
    if '.py' in name: return Path('tests', name)   # perhaps with a part: 'arrives.py RunConfig.clip'
    found = [p.relative_to(top) for p in (top/'nbs').glob('*.ipynb') if re.sub(r'^\d+\w?_', '', p.stem) == name]
    if len(found) != 1: raise SystemExit(f'tools/mutants.py: {len(found)} notebooks are called {name}')
    return found[0]

# ---------------------------------------------------------------- one run
def go_to(folder):
    "From now on, import and run what lies in this copy."
    os.environ['PYTHONPATH'] = str(folder)
    ours = str(Path(tempfile.gettempdir())/'xray_ct_mutants_')
    sys.path[:] = [str(folder)] + [p for p in sys.path if p not in ('', str(root)) and not p.startswith(ours)]
    for name, module in list(sys.modules.items()):   # packages that are imported already look here for what is not
        if name.split('.')[0] == 'xray_ct' and hasattr(module, '__path__'):
            module.__path__ = [str(folder.joinpath(*name.split('.')))]
    importlib.invalidate_caches()
    os.chdir(folder/'nbs')

def plant(m, copy, folder):
    "A copy of the copy, with the fault in cell and module."
    shutil.copytree(copy, folder, symlinks=True)
    module = folder/m.module
    module.write_text(module.read_text(encoding='utf-8').replace(m.old, m.new), encoding='utf-8')
    nb = nbformat.read(folder/m.notebook, 4)
    nb.cells[m.cell].source = nb.cells[m.cell].source.replace(m.old, m.new)
    nbformat.write(nb, folder/m.notebook)

def wanted(cell):
    "A plain test run executes it."
    if cell.cell_type != 'code' or 'nbdev_export(' in cell.source: return False
    return not re.search(r'^#\|\s*(slow|cuda|eval:\s*false)\b', cell.source, re.M)

def rest_of(shell, cells, start):
    "Run the cells from `start`: the first failure as text, or None."
    for i, cell in enumerate(cells[start:], start):
        if not wanted(cell): continue
        shell.run(cell.source)
        if shell.exc: return f'cell {i}: {type(shell.exc).__name__}: {" ".join(str(shell.exc).split())[:150]}'

def script(path):
    "Run a script, or the part of it that stands behind its name: its failure as text, or None."
    name, *part = path.name.split()
    path = path.with_name(name)
    sys.argv = [str(path), *['--only']*bool(part), *part]
    try: runpy.run_path(str(path), run_name='__main__')
    except SystemExit as e: return None if e.code in (None, 0, 77) else f'exit code {e.code}'
    except BaseException as e: return f'{type(e).__name__}: {" ".join(str(e).split())[:150]}'

def forked(function, log):
    "Run a function that returns text or None in a fork; what it returned, or how it ended."
    log.parent.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if not pid:
        os.setsid()
        out = os.open(log.with_suffix('.log'), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1); os.dup2(out, 2)
        try: log.write_text(json.dumps(function()))
        except BaseException: traceback.print_exc()
        finally:
            sys.stdout.flush(); sys.stderr.flush()
            os._exit(0)
    start = time.time()
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if time.time() - start > 60*minutes:
            os.killpg(pid, signal.SIGKILL); os.waitpid(pid, 0)
            return 'ran out of time'
        time.sleep(.05)
    if log.exists(): return json.loads(log.read_text())
    lines = log.with_suffix('.log').read_text(errors='replace').strip().splitlines()
    return 'died: ' + (lines[-1][:150] if lines else 'without a word')

# ---------------------------------------------------------------- one catcher
def attempt(path, jobs, copy, folder, late=False):
    "One catcher against its mutants: {number of the mutant: text or None}; 'again' where it has to start afresh."
    found = {}
    def child(n, m, run):
        where = folder/f'm{n}-{path.stem}'
        def planted():
            plant(m, copy, where)
            go_to(where)
            return run(where)
        start = time.time()
        found[n] = forked(planted, folder/'found'/f'{n}-{path.stem}.json')
        shutil.rmtree(where, ignore_errors=True)
        report(m, path, found[n], time.time() - start)
    if '.py' in path.name:
        for n, m in jobs: child(n, m, lambda where: script(where/path))
        return found
    from execnb.shell import CaptureShell
    cells, shell = nbformat.read(copy/path, 4).cells, None
    def opened():
        go_to(copy)
        return CaptureShell(path.name)
    here = {n for n, m in jobs if m.notebook == path and not late}
    for n, m in jobs:   # the fault is in a module that this notebook imports
        if n in here: continue
        def whole(where): return rest_of(CaptureShell(path.name), nbformat.read(where/path, 4).cells, 0)
        child(n, m, whole)
    if not here: return found
    shell = opened()
    for i, cell in enumerate(cells):
        for n, m in jobs:
            if n not in here or m.cell != i: continue
            if m.module.with_suffix('').as_posix().replace('/', '.') in sys.modules:
                found[n] = 'again'
                continue
            def after(where):
                return rest_of(shell, nbformat.read(where/path, 4).cells, i)
            child(n, m, after)
        if i >= max(m.cell for n, m in jobs if n in here): break
        if broken := rest_of(shell, [*cells[:i], cell], i):
            for n in here - set(found): found[n] = f'error: without a fault, {broken}'
            break
    return found

def report(m, path, failure, seconds):
    word = 'caught by' if failure else 'survived'
    print(f'{word:9} {path.stem:16} {seconds:4.0f} s  {first(m.old)} → {first(m.new)}   {failure or ""}', flush=True)

def first(text): return ' '.join(text.split())[:60]

# ---------------------------------------------------------------- the whole
def rounds(mutants, copy, folder, workers):
    "Each mutant meets its catchers one after another, until one catches it."
    def group(path, jobs, late):
        log = folder/'groups'/f'{path.stem}-{time.time_ns()}.json'
        out = forked_group(lambda: attempt(path, jobs, copy, folder, late), log)
        return path, jobs, out
    late = set()
    for turn in range(12):
        groups = defaultdict(list)
        for n, m in enumerate(mutants):
            names = [catcher_path(copy, c, m) for c in m.catchers or ('',)] if m.status == 'survived' else []
            if left := [p for p in names if p not in m.tried]: groups[left[0], n in late].append((n, m))
        if not groups: return
        with ThreadPoolExecutor(workers) as pool:
            order = sorted(groups.items(), key=lambda g: -len(g[1]))
            for path, jobs, out in pool.map(lambda g: group(g[0][0], g[1], g[0][1]), order):
                for n, m in jobs: settle(n, m, path, out.get(str(n), 'error: the run of the notebook died'), late)

def settle(n, m, path, failure, late):
    if failure == 'again': return late.add(n)
    m.tried.append(path)
    late.discard(n)
    if failure and failure.startswith('error: '): m.status, m.note = 'error', f'{path.stem}, {failure[7:]}'
    elif failure: m.status, m.note = 'caught', f'{path.stem}, {failure}'

def forked_group(function, log):
    "Like `forked`, with what is printed shown and a dictionary as the result."
    log.parent.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if not pid:
        try: log.write_text(json.dumps(function()))
        except BaseException: traceback.print_exc()
        finally: os._exit(0)
    os.waitpid(pid, 0)
    return json.loads(log.read_text()) if log.exists() else {}

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', default='', metavar='TEXT',
                   help='faults whose text, notebook or catcher contains it; family:NAME for a family')
    p.add_argument('--workers', type=int, default=2)
    p.add_argument('--find', action='store_true', help='only look for the texts')
    a = p.parse_args()
    with tempfile.TemporaryDirectory(prefix='xray_ct_mutants_') as folder:
        folder = Path(folder)
        (folder/'tmp').mkdir()
        os.environ['TMPDIR'] = tempfile.tempdir = str(folder/'tmp')  # what the tests leave goes with the folder
        skip = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', '*.pyc', '.git', '.venv',
                                      'runs', '_docs', '_proc')
        copy = folder/'copy'
        shutil.copytree(root, copy, ignore=lambda d, names: skip(d, names) if Path(d).name != 'nbs' else
                        [n for n in skip(d, names) if n != 'runs'], symlinks=True)
        with_revision(copy, folder)
        mutants = read_list(copy)
        text = lambda m: ' '.join([f'family:{m.family}', m.old, m.new, *m.catchers, str(m.notebook)])
        mutants = [m for m in mutants if a.only in text(m)]
        if not a.find:
            for name in heavy.split(): importlib.import_module(name)
            rounds(mutants, copy, folder, a.workers)
    return summary(mutants, a.find)

def with_revision(copy, folder):
    "Results name a revision, and are refused without one; the history lies beside the copies, which share it."
    git = ['git', '-C', copy, '-c', 'user.name=mutate', '-c', 'user.email=none', '-c', 'gc.auto=0']
    start = ['init', '-q', '--separate-git-dir', folder/'history']
    for command in (start, ['add', '-A'], ['commit', '-q', '-m', 'as it is']):
        subprocess.run([*git, *command], check=True, stdout=subprocess.DEVNULL)

def summary(mutants, only_found):
    "The score over the whole list; 0 where it is at least 92 % and nothing is an error."
    wrong = [m for m in mutants if m.status == 'error']
    for m in wrong: print(f'error: {first(m.old)}: {m.note}')
    if only_found:
        print(f'{len(mutants)} faults, {len(wrong)} whose text is not found once')
        return int(bool(wrong))
    lost = [m for m in mutants if m.status == 'survived']
    for m in lost:
        print(f'\nsurvived: {m.notebook} [{m.family}]\n  - {m.old}\n  + {m.new}\n  {m.why or "not explained"}')
    caught = len(mutants) - len(wrong) - len(lost)
    share = caught/max(len(mutants), 1)
    print(f'\n{caught} of {len(mutants)} faults caught, {share:.1%}; {len(lost)} survived, {len(wrong)} errors')
    return int(share < .92 or bool(wrong))

if __name__ == '__main__': sys.exit(main())
