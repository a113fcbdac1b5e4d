"The wheel and the source archive build, carry the licence, and import where the repository has never been seen."
import os, shutil, subprocess, sys, tarfile, tempfile, venv, zipfile
from pathlib import Path

root = Path(__file__).resolve().parent.parent
os.environ.pop('PYTHONPATH', None)   # the clean environment must not see this checkout

def run(*cmd, cwd=root):
    p = subprocess.run([str(c) for c in cmd], cwd=cwd, capture_output=True, text=True)
    if p.returncode: sys.exit(f'{" ".join(map(str, cmd))}\n{p.stdout}{p.stderr}')
    return p.stdout

def copy(folder):
    "What git would carry, so that nothing stale in build/ or *.egg-info gets in and nothing is left behind."
    names = ['xray_ct', 'settings.ini', 'setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE',
             'CHANGELOG.md', 'CITATION.cff']
    for n in names:
        copy_one = shutil.copytree if (root/n).is_dir() else shutil.copy
        copy_one(root/n, folder/n)
    for c in folder.rglob('__pycache__'): shutil.rmtree(c)
    return folder

def has_index(folder):
    "The build environment needs setuptools from a package index: is one within reach?"
    pip = [sys.executable, '-m', 'pip', 'download', '-q', '--no-deps', '-d', str(folder), 'setuptools>=68']
    return subprocess.run(pip, capture_output=True).returncode == 0

def source_archive(folder):
    "Built by the backend in an environment of its own."
    source = folder/'source'
    source.mkdir()
    copy(source)
    backend = 'import sys, setuptools.build_meta as b; print(b.build_sdist(sys.argv[1]))'
    env = folder/'build'
    venv.create(env, with_pip=True)
    run(env/'bin/pip', 'install', '-q', 'setuptools>=68', 'wheel')
    run(env/'bin/python', '-c', backend, folder, cwd=source)
    found = next(folder.glob('*.tar.gz'))
    names = [n.split('/', 1)[-1] for n in tarfile.open(found).getnames()]
    assert {'LICENSE', 'README.md', 'settings.ini', 'setup.py', 'pyproject.toml'} <= set(names), names
    return found

def wheel_of(sdist, folder):
    "From the source archive: both are right or neither."
    run(sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '-w', folder, sdist, cwd=folder)
    found = next(folder.glob('*.whl'))
    inside = zipfile.ZipFile(found).namelist()
    ours = {p.relative_to(root).as_posix() for p in (root/'xray_ct').rglob('*.py')}
    ours.add('xray_ct/py.typed')   # without it type checkers ignore the annotations
    ours |= {p.relative_to(root).as_posix() for p in (root/'xray_ct/weights').rglob('*') if p.is_file()}
    assert any(n.endswith('LICENSE') for n in inside) and ours <= set(inside), sorted(ours - set(inside))
    return found

def installed(wheel, folder):
    "The version that imports from an environment with nothing but the wheel."
    clean = folder/'clean'
    venv.create(clean, with_pip=True)
    run(clean/'bin/pip', 'install', '-q', '--no-deps', wheel)
    say = 'import xray_ct; print(xray_ct.__version__, xray_ct.__file__)'
    version, place = run(clean/'bin/python', '-I', '-c', say, cwd=folder).split()
    assert place.startswith(str(clean)) and (clean/'bin/xray_ct').exists(), place
    return version

def main():
    with tempfile.TemporaryDirectory(prefix='xray_ct_package_') as d:
        d = Path(d)
        if not has_index(d/'index'):
            print('skipped: no package index within reach')
            return 77
        sdist = source_archive(d)
        wheel = wheel_of(sdist, d)
        version = installed(wheel, d)
        sizes = [f'{f.name}, {f.stat().st_size//1000} kB' for f in (wheel, sdist)]
        print(f'{"; ".join(sizes)}: xray_ct {version} imports')

if __name__ == '__main__': sys.exit(main())
