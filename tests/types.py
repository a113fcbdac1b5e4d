"""Types: mypy finds nothing in the modules that are checked, and a user's program is checked against the package.

    python tests/types.py [--list]

`not_yet` names the modules that mypy still complains about: take one out when it passes. Another module must pass.
--list shows which modules have complaints, with their number. Without mypy: code 77 (skipped).
"""
import argparse, collections, importlib.util, os, re, subprocess, sys, tempfile
from pathlib import Path

root = Path(__file__).resolve().parent.parent
not_yet = ['xray_ct.' + n for n in '''
    baselines blocks.attention blocks.cnn blocks.depth blocks.encoder blocks.layers blocks.vae check consistency
    data.cohort data.fetch data.radiograph evaluate geometry interpolate models.base models.cascade
    models.direct models.ensemble models.hybrid models.latent models.peers models.plane models.progressive
    models.saved models.thin outside projector reconstruct slab slice_report thickness viewer volume
'''.split()]

client = '''
from xray_ct.projector import Geometry

g = Geometry(vol_shape=(64, 64, 64), spacing=(5., 5., 5.), det_shape=(128, 128), pixel=(3., 3.))
distance: float = g.sdd
Geometry((1, 1, 1), (1., 1., 1.), (1, 1), (1., 1.), sdd='far')
'''

def module_of(path): return '.'.join(path.with_suffix('').parts)

def mypy(*arguments, cwd):
    "mypy's complaints as (path, line, text)."
    cache = Path(tempfile.gettempdir())/f'xray_ct_mypy_{os.getuid()}'
    # methods that fastcore's `patch` adds are invisible to mypy; a parameter whose default is None may be None
    lenient = '--ignore-missing-imports', '--implicit-optional', '--disable-error-code=attr-defined'
    command = [sys.executable, '-m', 'mypy', *lenient, '--no-error-summary', '--cache-dir', cache]
    environment = {**os.environ, 'MYPYPATH': str(root)}
    ran = subprocess.run([*command, *arguments], cwd=cwd, capture_output=True, text=True, env=environment)
    if ran.returncode not in (0, 1): sys.exit(ran.stdout + ran.stderr)
    return [(m[1], int(m[2]), m[3]) for m in re.finditer(r'^(\S+?):(\d+): error: (.*)$', ran.stdout, re.M)]

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--list', action='store_true', help='show the modules with complaints')
    a = p.parse_args()
    if importlib.util.find_spec('mypy') is None:
        print('skipped: mypy is not installed (pip install -e ".[dev]")')
        sys.exit(77)
    found = collections.defaultdict(list)
    for path, line, text in mypy('xray_ct', cwd=root):
        found[module_of(Path(path))].append(f'{path}:{line}: {text}')
    if a.list:
        print('\n'.join(f'{n}   # {len(found[n])}' for n in sorted(found)))
        return 0
    assert (root/'xray_ct/py.typed').exists(), 'xray_ct/py.typed is missing: type checkers would ignore the package'
    new = {n: texts for n, texts in found.items() if n not in not_yet}
    for texts in new.values(): print('\n'.join(texts))
    better = [n for n in not_yet if n not in found]
    if better: print('these pass now, take them out of `not_yet`:', ', '.join(better))
    checked = [p for p in (root/'xray_ct').rglob('*.py') if module_of(p.relative_to(root)) not in not_yet]
    with tempfile.TemporaryDirectory(prefix='xray_ct_types_') as d:
        (Path(d)/'client.py').write_text(client)
        said = mypy('--follow-imports=silent', 'client.py', cwd=d)
    wrong = client.splitlines().index("Geometry((1, 1, 1), (1., 1., 1.), (1, 1), (1., 1.), sdd='far')") + 1
    good = len(said) == 1 and said[0][1] == wrong and '"sdd"' in said[0][2]
    if not good: print(f"a user's program: line {wrong} alone is wrong, and mypy says {said}")
    failed = len(new) + (not good)
    print(f'{len(checked)} modules checked, {len(not_yet)} not yet')
    print(f'{len(checked) - len(new) + good} passed, {failed} failed')
    return int(bool(failed))

if __name__ == '__main__': sys.exit(main())
