"""What the tools share: processes with a time limit, and what is in a notebook."""
import os, re, signal, subprocess, sys
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

def kill(p):
    "End a process with all that it started."
    try: os.killpg(p.pid, signal.SIGKILL)
    except ProcessLookupError: pass

def process(
    cmd,
    timeout, # seconds on the machine of reference when it is quiet; None: no limit
    cwd=root,
    **env, # added to the environment
): # (exit code, what it printed); 124 where it ran out of time
    "Run a command without stdin, on one thread. Its whole process group dies at the time limit."
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'PASSIVE', 'PYTHONUNBUFFERED': '1', **env}
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
in_child = """
import os, sys
if n := os.environ.get('XRAY_CT_THREADS'):   # a machine of so many threads (tools/machines.py)
    import torch
    change, ask = torch.set_num_threads, torch.get_num_threads
    change(int(n))
    torch.set_num_threads = lambda n: None   # at the top of a notebook, for speed
    def get_num_threads():                   # a test that needs a certain number asks first
        torch.set_num_threads = change
        return ask()
    torch.get_num_threads = get_num_threads
from execnb.shell import CaptureShell
from nbdev.test import nbdev_test
cell = CaptureShell.cell
CaptureShell.cell = lambda self, c, **kw: cell(self, c, **{**kw, 'verbose': True})   # show what a cell prints
nbdev_test(path=sys.argv[1], flags=sys.argv[2], n_workers=0)
"""

def test_notebook(path, flags, timeout, **env):
    "Run a notebook as nbdev_test does. Returns its lines that begin with `skipped`."
    rc, out = python('-c', in_child, path, ' '.join(flags), timeout=timeout, MPLBACKEND='agg', **env)
    if rc or 'Success.' not in out: raise Failure(tail(out))
    return '; '.join(dict.fromkeys(l.strip() for l in out.splitlines() if l.lower().startswith('skipped')))
