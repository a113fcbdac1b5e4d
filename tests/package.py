"The wheel and the source archive build, carry the licence, and import from an environment that has never seen the repository."
import os, subprocess, sys, tarfile, tempfile, venv, zipfile
from pathlib import Path

root = Path(__file__).resolve().parent.parent
os.environ.pop('PYTHONPATH', None)   # the clean environment must not see this checkout

def run(*cmd, cwd=root):
    p = subprocess.run([str(c) for c in cmd], cwd=cwd, capture_output=True, text=True)
    if p.returncode: sys.exit(f'{" ".join(map(str, cmd))}\n{p.stdout}{p.stderr}')
    return p.stdout

def copy(folder):
    "What git would carry, so that nothing stale in build/ or *.egg-info gets in and nothing is left behind."
    import shutil
    names = ['xray_ct', 'settings.ini', 'setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE',
             'CHANGELOG.md', 'CITATION.cff']
    for n in names: (shutil.copytree if (root/n).is_dir() else shutil.copy)(root/n, folder/n)
    for c in folder.rglob('__pycache__'): shutil.rmtree(c)
    return folder

with tempfile.TemporaryDirectory(prefix='xray_ct_package_') as d:
    d = Path(d); source = d/'source'; source.mkdir(); copy(source)
    isolated = subprocess.run([sys.executable, '-m', 'pip', 'download', '-q', '--no-deps', '-d', str(d/'index'), 'setuptools>=68'], capture_output=True).returncode == 0
    if not isolated:   # the build environment needs setuptools from an index
        print('skipped: no package index within reach'); sys.exit(77)
    backend = 'import sys, setuptools.build_meta as b; print(b.build_sdist(sys.argv[1]))'
    env = d/'build'; venv.create(env, with_pip=True)
    run(env/'bin/pip', 'install', '-q', 'setuptools>=68', 'wheel')
    run(env/'bin/python', '-c', backend, d, cwd=source)
    sdist = next(d.glob('*.tar.gz'))
    names = [n.split('/', 1)[-1] for n in tarfile.open(sdist).getnames()]
    assert {'LICENSE', 'README.md', 'settings.ini', 'setup.py', 'pyproject.toml'} <= set(names), names
    run(sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '-w', d, sdist, cwd=d)   # from the source archive: both are right or neither
    wheel = next(d.glob('*.whl'))
    inside = zipfile.ZipFile(wheel).namelist()
    ours = {p.relative_to(root).as_posix() for p in (root/'xray_ct').rglob('*.py')}
    ours.add('xray_ct/py.typed')   # without it type checkers ignore the annotations
    assert any(n.endswith('LICENSE') for n in inside) and ours <= set(inside), sorted(ours - set(inside))
    clean = d/'clean'; venv.create(clean, with_pip=True)
    run(clean/'bin/pip', 'install', '-q', '--no-deps', wheel)
    version = run(clean/'bin/python', '-c', 'import xray_ct; print(xray_ct.__version__, xray_ct.__file__)', cwd=d).split()
    assert version[1].startswith(str(clean)) and (clean/'bin/xray_ct').exists(), version
    print(f'{wheel.name}, {wheel.stat().st_size//1000} kB; {sdist.name}, {sdist.stat().st_size//1000} kB: xray_ct {version[0]} imports')
