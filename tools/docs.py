"""The notebooks as a site in _docs/: chapters, search, mathematics, an API reference; all files lie in the site.

    python tools/docs.py [folder]
    python -m http.server -d _docs     # then open http://localhost:8000

Material for MkDocs builds it from Markdown that this script writes. The notebooks are saved with their outputs and
are not run here. MathJax comes from the package jupyter-server-mathjax and is copied into the site.
"""
import base64, importlib.util, json, os, re, shutil, subprocess, sys, tempfile
from configparser import ConfigParser
from pathlib import Path
import nbformat

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root/'tools'))
import api
from readme import visible

config = ConfigParser(delimiters=['='])
config.read(root/'settings.ini', encoding='utf-8')
config = config['DEFAULT']
git_url = config['git_url']
site_url = config['doc_host'] + config['doc_baseurl'] + '/'
chapters = ['Space', 'Data', 'Mathematics', 'Blocks', 'Models', 'Training', 'Evidence', 'Use',
            'Other software']   # by tens of the number
project = ['RESULTS.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'SECURITY.md', 'deploy/README.md']
pictures = {'image/jpeg': 'jpg', 'image/png': 'png'}
mathjax_config = 'TeX-AMS-MML_HTMLorMML-full'
mathjax_parts = ['MathJax.js', 'LICENSE', f'config/{mathjax_config}.js', 'jax', 'extensions',
                 'fonts/HTML-CSS/STIX-Web/woff']

style = """
.md-grid { max-width: 76rem }
.md-typeset table:not([class]) { font-size: .68rem }
.md-typeset table:not([class]) td:first-child { white-space: nowrap }
.md-typeset div.output pre { background: none; border-left: .15rem solid var(--md-default-fg-color--lightest) }
.md-typeset div.output pre > code { background: none; padding: .2rem .8rem; max-height: 24rem; white-space: pre-wrap }
.md-typeset .MathJax_Display { overflow-x: auto; overflow-y: hidden; padding: .2rem 0 }
.md-typeset h2 code, .md-typeset h3 code { background: none; padding: 0 }
.md-typeset img { max-width: 100%; height: auto }
"""
mathjax_setup = """
window.MathJax = {
  tex2jax: {
    inlineMath: [['\\\\(', '\\\\)']], displayMath: [['\\\\[', '\\\\]']],
    ignoreClass: '.*', processClass: 'arithmatex'
  },
  'HTML-CSS': {
    availableFonts: ['STIX-Web'], webFont: 'STIX-Web', preferredFont: null, imageFont: null,
    linebreaks: { automatic: true }
  },
  showMathMenu: false, messageStyle: 'none'
}
"""

# ---------------------------------------------------------------- Markdown
def blocks_apart(text):
    "A blank line before each list and table: GitHub needs none, Python-Markdown does."
    out, fenced = [], False
    def kind(line):
        if re.match(r'\s*([-*+]|\d+\.)\s', line): return 'list'
        return 'table' if line.startswith('|') else 'text' if line.strip() else ''
    for line in text.splitlines():
        before = out[-1] if out else ''
        if line.lstrip().startswith('```'): fenced = not fenced
        starts = kind(line) in ('list', 'table') and kind(before) == 'text' and not before.startswith(' ')
        if starts and not fenced: out.append('')
        out.append(line)
    return '\n'.join(out)

def links(text, here):
    "Links of a page that lies at `here` in the repository, as seen from its place in the site."
    def move(m):
        target, _, anchor = m[2].partition('#')
        if re.match(r'[a-z]+:|/', m[2]) or not target: return m[0]
        path = Path(os.path.normpath(here.parent/target))
        page = site_path(path)
        if page is None:
            kind = 'tree' if (root/path).is_dir() else 'blob'
            return f'{m[1]}{git_url}/{kind}/main/{path.as_posix()}' + (f'#{anchor}' if anchor else '')
        return m[1] + Path(os.path.relpath(page, site_path(here).parent)).as_posix() + (f'#{anchor}' if anchor else '')
    return re.sub(r'(\]\(|src=")([^)"\s]+)', move, text)

def without_badges(text):
    "Without pictures from other hosts: nothing on the site is loaded from elsewhere."
    return re.sub(r'\[?!\[[^\]]*\]\(https?://[^)]*\)(\]\([^)]*\))?\n?', '', text)

def site_path(path):
    "Where a file of the repository lies in the site's sources; None: it isn't there."
    if path.suffix == '.ipynb': return path.relative_to('nbs').with_suffix('.md')
    if path.as_posix() in project: return Path('project')/path.as_posix().replace('/', '_').lower()
    if path.as_posix() == 'README.md': return Path('index.md')
    if path.is_relative_to('nbs/images') or path.is_relative_to('assets'): return Path('images')/path.name
    return None

def joined(outputs):
    "What was printed bit by bit, in one piece."
    out = []
    for o in outputs:
        if o.output_type == 'stream' and out and out[-1].output_type == 'stream': out[-1].text += o.text
        else: out.append(o)
    return out

def output(o, stem, k, folder):
    "A saved output as Markdown; pictures become files."
    data = o.get('data', {})
    for kind, ending in pictures.items():
        if kind in data:
            (folder/f'{stem}_{k}.{ending}').write_bytes(base64.b64decode(data[kind]))
            return f'![output of the cell above]({stem}_{k}.{ending})'
    if 'text/markdown' in data: return blocks_apart(''.join(data['text/markdown']))
    if 'text/html' in data: return f'<div class="output">{"".join(data["text/html"])}</div>'
    text = re.sub(r'\x1b\[[\d;]*m', '', ''.join(o.get('text', data.get('text/plain', ''))))
    return f'``````{{ .text .output .no-copy }}\n{text.rstrip()}\n``````' if text.strip() else ''

def notebook_page(path, target, module):
    "A notebook's page, from its cells and saved outputs."
    here, parts, k = path.relative_to(root), [], 0
    target.parent.mkdir(parents=True, exist_ok=True)
    for c in visible(nbformat.read(path, 4)).cells:
        if c.cell_type == 'markdown':
            parts.append(links(blocks_apart(without_badges(c.source)), here))
            continue
        unseen = c.metadata.get('transient', {}).get('remove_source') or not c.source.strip()
        if not unseen: parts.append(f'``````python\n{c.source.strip()}\n``````')
        for o in joined(c.get('outputs', [])):
            k += 1
            text = output(o, path.stem, k, target.parent)
            parts.append(links(text, here) if 'text/markdown' in o.get('data', {}) else text)
    if path.stem != 'index':
        up = '../' if path.parent.name == 'runs' else ''
        notes = [f'[the notebook]({git_url}/blob/main/{here.as_posix()})']
        if module: notes.append(f'[API of `{module}`]({up}api/{module}.md)')
        parts.insert(1, ' · '.join(notes))
    target.write_text('\n\n'.join(p for p in parts if p), encoding='utf-8')

# ---------------------------------------------------------------- the whole
def title(path):
    found = re.search(r'^#\s+(.+)', ''.join(c.source for c in nbformat.read(path, 4).cells[:1]), re.M)
    return found[1].strip() if found else path.stem

def sources(folder):
    "Write every page; returns the menu."
    known = api.modules(root)
    module_of = {}
    for m in known: module_of.setdefault(m.notebook, m.name)
    hidden = lambda f: any(p.startswith(('_', '.')) for p in f.relative_to(root).parts)
    files = [f for f in sorted((root/'nbs').rglob('*.ipynb')) if not hidden(f)]
    menu = {}
    for f in files:
        page = site_path(f.relative_to(root))
        notebook_page(f, folder/page, module_of.get(f.relative_to(root).as_posix()))
        number = re.match(r'(\d)\d_', f.name)
        chapter = f'{number[1]} {chapters[int(number[1])]}' if number else 'Home' if f.stem == 'index' else 'Runs'
        name = f'{f.name[:2]} {title(f)}' if number else title(f)
        menu.setdefault(chapter, []).append({name: page.as_posix()})
    (folder/'api').mkdir()
    rows = ['# API', 'Every public name, by module; the modules in reading order.',
            '| module | what it does |\n|---|---|']
    for m in known:
        (folder/f'api/{m.name}.md').write_text(api.page(m, git_url), encoding='utf-8')
        rows[-1] += f'\n| [{m.name}]({m.name}.md) | {api.cell(m.doc)} |'
    (folder/'api/index.md').write_text(blocks_apart('\n\n'.join(rows)), encoding='utf-8')
    for name in filter(lambda n: (root/n).exists(), project):
        page = folder/site_path(Path(name))
        page.parent.mkdir(exist_ok=True)
        text = (root/name).read_text(encoding='utf-8')
        page.write_text(links(blocks_apart(text), Path(name)), encoding='utf-8')
        heading = re.search(r'^# (.+)', text, re.M)[1]
        menu.setdefault('Project', []).append({heading: page.relative_to(folder).as_posix()})
    for f in [*(root/'nbs/images').glob('*'), *(root/'assets').glob('*')]:
        (folder/'images').mkdir(exist_ok=True)
        shutil.copy(f, folder/'images')
    menu['API'] = ['api/index.md'] + [{m.name.removeprefix('xray_ct.'): f'api/{m.name}.md'} for m in known]
    first = [{'Home': 'index.md'}] + [{c: menu.pop(c)} for c in sorted(c for c in menu if c[0].isdigit())]
    return first + [{c: menu[c]} for c in ('Runs', 'API', 'Project') if c in menu]

def mathjax(folder):
    "Copy MathJax into the site's sources."
    found = importlib.util.find_spec('jupyter_server_mathjax')
    if found is None: sys.exit('tools/docs.py: jupyter-server-mathjax is absent. Install it: pip install -e ".[dev]"')
    static = Path(found.origin).parent/'static'
    for part in mathjax_parts:
        (folder/'mathjax'/part).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (static/part).is_dir() else shutil.copy)(static/part, folder/'mathjax'/part)
    for unused in ('jax/output/SVG', 'extensions/a11y'): shutil.rmtree(folder/'mathjax'/unused, ignore_errors=True)
    (folder/'mathjax/setup.js').write_text(mathjax_setup, encoding='utf-8')

def settings(folder, target, menu):
    "MkDocs' configuration."
    theme = dict(
        name='material', font=False, palette=[dict(scheme='default', primary='blue grey', accent='deep orange')],
        features=['navigation.indexes', 'navigation.top', 'navigation.footer', 'search.highlight', 'content.code.copy',
                  'toc.follow'])
    extensions = ['tables', 'attr_list', 'md_in_html', 'footnotes', 'pymdownx.superfences', 'pymdownx.highlight',
                  {'toc': dict(permalink=True, toc_depth=3)}, {'pymdownx.arithmatex': dict(generic=True)}]
    return dict(
        site_name='xray_ct', site_url=site_url, repo_url=git_url, repo_name='xray_ct', edit_uri='',
        site_description=config['description'],
        copyright='Research software: not a medical device, not for diagnosis or treatment.',
        docs_dir=str(folder), site_dir=str(target), use_directory_urls=False, nav=menu, plugins=['search'],
        theme=theme, markdown_extensions=extensions, extra_css=['site.css'],
        extra_javascript=['mathjax/setup.js', dict(path=f'mathjax/MathJax.js?config={mathjax_config}', defer=True)],
        validation=dict(links=dict.fromkeys(('not_found', 'anchors', 'absolute_links', 'unrecognized_links'), 'warn')))

def build(target):
    with tempfile.TemporaryDirectory(prefix='xray_ct_docs_') as d:
        folder, file = Path(d)/'docs', Path(d)/'mkdocs.yml'
        folder.mkdir()
        menu = sources(folder)
        mathjax(folder)
        (folder/'site.css').write_text(style, encoding='utf-8')
        file.write_text(json.dumps(settings(folder, target, menu)), encoding='utf-8')   # JSON is YAML
        made = subprocess.run([sys.executable, '-m', 'mkdocs', 'build', '--strict', '--quiet', '-f', file],
                              env={**os.environ, 'NO_MKDOCS_2_WARNING': '1'})
        if made.returncode: sys.exit('tools/docs.py: MkDocs refused the site. The lines above say why.')
    (target/'.nojekyll').touch()
    n = sum(1 for _ in target.rglob('*.html'))
    print(f'{n} pages: python -m http.server -d "{target}", then open http://localhost:8000')

if __name__ == '__main__': build(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else root/'_docs')
