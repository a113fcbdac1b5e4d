"""What the tools share: processes with a time limit, and what is in a notebook."""
import contextlib, functools, multiprocessing, os, re, shutil, signal, subprocess, sys, tempfile, time, types
from configparser import ConfigParser
from pathlib import Path
import nbformat
import machines

root = Path(__file__).resolve().parent.parent
config = ConfigParser(delimiters=['='])
config.read(root/'settings.ini', encoding='utf-8')
flags_known = config['DEFAULT']['tst_flags'].split()

class Skip(Exception): pass
class Failure(Exception): pass

# ---------------------------------------------------------------- processes
running = set()
one_thread = {'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'PASSIVE', 'PYTHONUNBUFFERED': '1'}

def kill(p):
    "End a process with all that it started."
    try: os.killpg(p.pid, signal.SIGKILL)
    except ProcessLookupError: pass

@contextlib.contextmanager
def scratch():
    "A folder for the temporary files of one process; what it leaves behind goes with it."
    folder = tempfile.mkdtemp(prefix='xray_ct_')
    os.chmod(folder, 0o1777)                     # as /tmp: a test may go on as another user
    try: yield folder
    finally: shutil.rmtree(folder, ignore_errors=True)

def process(
    cmd,
    timeout, # seconds on the machine of reference when it is quiet; None: no limit
    cwd=root,
    **env, # added to the environment
): # (exit code, what it printed); 124 where it ran out of time
    "Run a command without stdin, on one thread. Its whole process group dies at the time limit."
    with scratch() as folder:
        env = {**os.environ, **one_thread, 'TMPDIR': folder, **env}
        p = subprocess.Popen([str(c) for c in cmd], cwd=cwd, env=env, stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             text=True, errors='replace', start_new_session=True)
        running.add(p)
        try:
            out, late = wait(p, timeout)
            return (124, f'{out}\nstopped: {late}') if late else (p.returncode, out)
        finally: running.discard(p)

def wait(p, timeout):
    "(what it printed, why it was stopped). At the limit the machine is probed again: it may have become busier since."
    allowed = None if timeout is None else timeout*machines.slowness().wall
    try: return p.communicate(timeout=allowed)[0], ''
    except subprocess.TimeoutExpired: more = timeout*machines.slowness(again=True).wall - allowed
    if more > 0:
        allowed += more
        try: return p.communicate(timeout=more)[0], ''
        except subprocess.TimeoutExpired: pass
    kill(p)
    return p.communicate()[0], f'longer than {allowed:.0f} s ({timeout:.0f} s on a quiet machine)'

def python(*args, timeout=120, **kw): return process([sys.executable, *args], timeout, **kw)

def tail(text, n=60):
    "The last lines of what a process printed, without colours."
    lines = re.sub(r'\x1b\[[\d;]*m', '', text).rstrip().splitlines()
    lines = [l for l in lines if 'IPKernelApp' not in l]
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
def without_magic(source): return re.sub(r'^\s*[%!].*$', 'pass', source, flags=re.M)

def module_of(path):
    "The module that a notebook exports, such as `data.drr`, or None."
    found = [m[1] for c in code(path) if (m := re.search(r'^\s*#\|\s*default_exp\s+(\S+)', c.source, re.M))]
    return found[0] if found else None

# ---------------------------------------------------------------- one notebook's tests
# What most notebooks import first takes a process longer than many a test. A server imports it once, and each test is a
# process forked from it. The library itself is imported by each test.
imported_before = """torch fastai.basics fastai.callback.core matplotlib.pyplot pandas scipy.stats
    safetensors.torch sklearn.linear_model pydicom SimpleITK skimage.metrics fastcore.test IPython.display execnb.shell
    nbdev.test""".split()

def run_notebook(path, flags, threads=None): # in a process of its own
    "nbdev_test on one notebook, as a machine of so many threads (tools/machines.py)."
    if threads:
        import torch
        change, ask = torch.set_num_threads, torch.get_num_threads
        change(int(threads))
        here = os.getpid()
        # at the top of a notebook it is for speed; a worker that did not obey would wait for threads it has not
        torch.set_num_threads = lambda n: None if os.getpid() == here else change(n)
        def get_num_threads():                   # a test that needs a certain number asks first
            torch.set_num_threads = change
            return ask()
        torch.get_num_threads = get_num_threads
    from execnb.shell import CaptureShell
    from nbdev.test import nbdev_test
    cell = CaptureShell.cell
    CaptureShell.cell = lambda self, c, **kw: cell(self, c, **{**kw, 'verbose': True})   # show what a cell prints
    nbdev_test(path=path, flags=flags, n_workers=0)

def _forked(path, flags, file, folder): # a child of the server of imports
    os.setsid()                                  # a group that can be ended as a whole
    os.environ['TMPDIR'] = tempfile.tempdir = folder
    multiprocessing.set_start_method(None, force=True)   # the platform's own, as where no server is
    out, null = os.open(file, os.O_WRONLY | os.O_APPEND), os.open(os.devnull, os.O_RDONLY)
    for there, here in (null, 0), (out, 1), (out, 2): os.dup2(there, here)
    sys.modules['__main__'] = types.ModuleType('__main__')   # processes that a test spawns need none of this
    os.chdir(root)
    try: run_notebook(path, flags)
    finally: [f.flush() for f in (sys.stdout, sys.stderr)]

@functools.cache
def forks():
    "The context of processes with everything imported."
    os.environ.update(one_thread, MPLBACKEND='agg')   # read when the server imports
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(imported_before)
    return context

def fork_notebook(path, flags, timeout): # (exit code, what it printed)
    with tempfile.NamedTemporaryFile(mode='r', errors='replace') as file, scratch() as folder:
        p = forks().Process(target=_forked, args=(str(path), ' '.join(flags), file.name, folder))
        p.start()
        running.add(p)
        try:
            begun, allowed = time.monotonic(), timeout*machines.slowness().wall
            p.join(allowed)
            if p.is_alive():                     # probe again: the machine may have become busier since
                allowed = max(allowed, timeout*machines.slowness(again=True).wall)
                p.join(max(0, allowed - (time.monotonic() - begun)))
            late = p.is_alive()
            if late: kill(p)                     # with all that it started
            p.join()
        finally: running.discard(p)
        out = file.read()
    if late: return 124, f'{out}\nstopped: longer than {allowed:.0f} s ({timeout:.0f} s on a quiet machine)'
    return p.exitcode, out

in_child = """
import os, sys
sys.path.insert(0, sys.argv[3])
from common import run_notebook
run_notebook(sys.argv[1], sys.argv[2], os.environ.get('XRAY_CT_THREADS'))
"""

def test_notebook(path, flags, timeout, **env):
    "Run a notebook as nbdev_test does. Returns its lines that begin with `skipped`."
    if env or not hasattr(os, 'fork'):           # another machine is another environment before the first import
        tools = Path(__file__).parent
        rc, out = python('-c', in_child, path, ' '.join(flags), tools, timeout=timeout, MPLBACKEND='agg', **env)
    else: rc, out = fork_notebook(path, flags, timeout)
    if rc or 'Success.' not in out: raise Failure(tail(out))
    return '; '.join(dict.fromkeys(l.strip() for l in out.splitlines() if l.lower().startswith('skipped')))
