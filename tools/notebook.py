"""Edit a notebook as text, run it, clean it, export it.

    python tools/notebook.py open  nbs/12_dicom.ipynb scratch/12_dicom.py   # notebook -> percent script
    python tools/notebook.py build scratch/12_dicom.py nbs/12_dicom.ipynb   # script -> notebook, export, run, clean
    python tools/notebook.py run   nbs/12_dicom.ipynb                       # export, run in place, clean

`build` keeps the ids of cells whose text did not change (nbdev's sync key). `run` saves figures as small
JPEGs, so that a notebook stays under about 400 kB. A failing cell stops the run with its traceback; the
notebook is saved with what ran before it, so that you can look.
"""
import argparse, os, secrets, sys, time
from pathlib import Path

root = Path(__file__).resolve().parent.parent
kernelspec = {'display_name': 'python3', 'language': 'python', 'name': 'python3'}
jpeg = """
import matplotlib
matplotlib.rcParams.update({'figure.dpi': 96, 'savefig.dpi': 96, 'image.cmap': 'gray'})
from matplotlib_inline.backend_inline import set_matplotlib_formats
set_matplotlib_formats('jpeg', pil_kwargs={'quality': 80})
"""

def normalise(nb, old=None):
    "nbformat 4.5 with stable ids and the one kernelspec; `old` lends its ids to unchanged cells."
    ids = {}
    for c in (old.cells if old else []):
        ids.setdefault((c.cell_type, c.source), []).append(c.get('id'))
    used = set()
    for c in nb.cells:
        known = [i for i in ids.get((c.cell_type, c.source), []) if i and i not in used]
        c['id'] = known[0] if known else secrets.token_hex(4)
        used.add(c['id'])
        c['metadata'] = {k: v for k, v in c.metadata.items() if k == 'tags'}
    nb.nbformat, nb.nbformat_minor, nb.metadata = 4, 5, {'kernelspec': kernelspec}
    return nb

def run(path, timeout):
    import nbformat
    from nbclient import NotebookClient
    nb = nbformat.read(path, 4)
    where = {'metadata': {'path': str(path.parent)}}
    client = NotebookClient(nb, timeout=timeout, kernel_name='python3', resources=where)
    try:
        with client.setup_kernel():
            client.kc.execute(jpeg, silent=True)
            for i, cell in enumerate(nb.cells): client.execute_cell(cell, i)
    finally:
        for c in nb.cells: c.metadata.pop('execution', None)
        nbformat.write(nb, path)

def export_and_clean(path):
    from nbdev.export import nb_export
    from nbdev.clean import nbdev_clean
    nbdev_clean(str(path))
    if 'runs' not in path.parts and path.stem != 'index': nb_export(path, root/'xray_ct')

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('command', choices=['open', 'build', 'run'])
    p.add_argument('source', type=Path)
    p.add_argument('target', type=Path, nargs='?')
    p.add_argument('--timeout', type=int, default=600, help='seconds a cell may take')
    p.add_argument('--no-run', action='store_true', help='build: do not execute')
    a = p.parse_args()
    import jupytext, nbformat
    os.chdir(root)
    if a.command == 'open':
        return jupytext.write(nbformat.read(a.source, 4), a.target, fmt='py:percent')
    path = a.target if a.command == 'build' else a.source
    if a.command == 'build':
        old = nbformat.read(path, 4) if path.exists() else None
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(normalise(jupytext.read(a.source, fmt='py:percent'), old), path)
    export_and_clean(path)
    t = time.time()
    if not a.no_run:
        try: run(path, a.timeout)
        except Exception as e: sys.exit(f'{path}: {str(e)[-6000:]}')
        export_and_clean(path)
    print(f'{path}: ok, {time.time()-t:.0f} s, {path.stat().st_size//1000} kB')

if __name__ == '__main__': main()
