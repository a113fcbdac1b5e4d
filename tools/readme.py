"""README.md from nbs/index.ipynb, and RESULTS.md from the recorded results (tools/results.py).

    python tools/readme.py           # write both (and README's pictures)
    python tools/readme.py --check   # exit 1 if they are not what the notebook and the result files say

nbdev_readme wants Quarto; nbconvert is enough. Cells marked `#| hide` are left out, lines `#| …` are stripped,
links relative to nbs/ are made relative to the top, and pictures that a cell drew go to assets/readme_*.
"""
import re, sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root/'tools'))
import results

most_lines = 120
pictures = root/'assets'
notice = '<!-- Made from nbs/index.ipynb by `make readme`: edit the notebook. -->\n\n'

def visible(nb):
    "The notebook as a reader should see it: no hidden cells, no directives."
    nb.metadata['language_info'] = {'name': 'python'}   # nbdev_clean strips it; it colours the code
    nb.cells = [c for c in nb.cells if not re.search(r'^\s*#\|\s*(hide|default_exp)\b', c.source, re.M)]
    for c in nb.cells:
        if c.cell_type != 'code': continue
        if re.search(r'^\s*#\|\s*echo:\s*false', c.source, re.M): c.metadata['transient'] = {'remove_source': True}
        c.source = re.sub(r'^\s*#\|.*\n?', '', c.source, flags=re.M)
    return nb

def readme():
    "README.md's text and its pictures {file name: bytes}."
    import nbformat
    from nbconvert import MarkdownExporter
    from traitlets.config import Config
    names = {'output_filename_template': 'readme_{cell_index}_{index}{extension}'}
    exporter = MarkdownExporter(config=Config({'ExtractOutputPreprocessor': names}))
    text, resources = exporter.from_notebook_node(visible(nbformat.read(root/'nbs/index.ipynb', 4)))
    files = resources.get('outputs', {})
    def move(m):
        "A link as seen from the top of the repository."
        link = m[2]
        if link in files: return f'{m[1]}{pictures.name}/{link}'
        if re.match(r'[a-z]+:|#|/', link): return m[0]
        return m[1] + (link[3:] if link.startswith('../') else f'nbs/{link}')
    text = re.sub(r'(\]\(|src=")([^)"\s]+)', move, text)
    text = re.sub(r'[ \t]+$', '', text, flags=re.M).replace('![jpeg]', '![figure]').replace('![png]', '![figure]')
    return notice + re.sub(r'\n{3,}', '\n\n', text).strip() + '\n', files

def stale():
    "What differs from the notebook and the result files, as a list of sentences; empty when all is in sync."
    text, files = readme()
    lines = len(text.splitlines())
    want = {root/'README.md': text.encode(), **{pictures/n: b for n, b in files.items()}}
    out = results.stale() + ([f'README.md has {lines} lines, more than {most_lines}'] if lines > most_lines else [])
    different = [p for p, b in want.items() if not p.exists() or p.read_bytes() != b]
    out += [f'{p.relative_to(root)} differs from nbs/index.ipynb: run `make readme`' for p in different]
    left = [p for p in sorted(pictures.glob('readme_*')) if p not in want]
    out += [f'{p.relative_to(root)} is no longer in nbs/index.ipynb: run `make readme`' for p in left]
    links = re.findall(r'(?:\]\(|src=")([^)"\s#]+)', text)
    lost = [l for l in links if not re.match(r'[a-z]+:', l) and not (root/l).exists()]
    return out + [f'README.md points to {l}, which does not exist' for l in lost]

def write():
    results.write()
    text, files = readme()
    for p in pictures.glob('readme_*'): p.unlink()
    for name, data in files.items():
        pictures.mkdir(exist_ok=True)
        (pictures/name).write_bytes(data)
    (root/'README.md').write_text(text, encoding='utf-8')
    print(f'README.md: {len(text.splitlines())} lines, {len(files)} pictures')

if __name__ == '__main__':
    if '--check' not in sys.argv: write()
    problems = stale()
    print('\n'.join(problems) or 'README.md and RESULTS.md are in sync with the notebook and the results')
    sys.exit(bool(problems))
