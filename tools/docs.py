"""The notebooks as a small static site in _docs/: one page a notebook, in reading order, no server and no Quarto needed.

    python tools/docs.py [folder]
"""
import html, re, shutil, sys
from configparser import ConfigParser
from pathlib import Path
import nbformat
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root/'tools'))
from readme import visible

config = ConfigParser(delimiters=['='])
config.read(root/'settings.ini', encoding='utf-8')
git_url = config['DEFAULT']['git_url']
style = """
body { display: grid; grid-template-columns: 15rem minmax(0, 52rem); gap: 2.5rem; margin: 0 1.5rem; font: 16px/1.55 system-ui, sans-serif; color: #222 }
nav { position: sticky; top: 0; height: 100vh; overflow: auto; font-size: .85rem; padding: 1rem 0 }
nav a { display: block; padding: .12rem 0; color: #345; text-decoration: none } nav a.here { font-weight: 700 } nav b { display: block; margin-top: .8rem }
main { padding: 1rem 0 4rem } blockquote { margin: 0; color: #555; font-style: italic } img, svg { max-width: 100% } .anchor-link { display: none }
pre { background: #f6f7f9; padding: .6rem .8rem; overflow: auto; font-size: .85rem; line-height: 1.4 } .prompt { display: none }
.output_area pre, .jp-OutputArea pre { background: none; border-left: 3px solid #dde } table { border-collapse: collapse } td, th { padding: .2rem .7rem; border-bottom: 1px solid #dde; text-align: left }
footer { margin-top: 3rem; font-size: .8rem; color: #666 } @media (max-width: 60rem) { body { display: block } nav { position: static; height: auto } }
"""
page = """<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style>
<script>MathJax = {{tex: {{inlineMath: [['$', '$']]}}}}</script><script async src="https://cdn.jsdelivr.net/npm/mathjax@3/es5/tex-mml-chtml.js"></script>
</head><body><nav>{nav}</nav><main>{body}<footer>Research software: not a medical device, not for diagnosis or treatment.</footer></main></body></html>
"""

def notebooks():
    "(path, title) of every page: the index, the library in reading order, the runs."
    files = [f for f in (root/'nbs').rglob('*.ipynb') if not any(p.startswith(('_', '.')) for p in f.relative_to(root).parts)]
    files.sort(key=lambda f: (f.stem != 'index', f.parent.name == 'runs', f.name))
    titles = {f: re.search(r'^#\s+(.+)', ''.join(c.source for c in nbformat.read(f, 4).cells[:1]), re.M) for f in files}
    return [(f, titles[f][1].strip() if titles[f] else f.stem) for f in files]

def build(target):
    pages = notebooks()
    style_all = style + HtmlFormatter(style='friendly').get_style_defs('.highlight')
    shutil.rmtree(target, ignore_errors=True)
    url = lambda f: f.relative_to(root/'nbs').with_suffix('.html').as_posix()
    for f, title in pages:
        up = '../' if f.parent.name == 'runs' else ''
        nav = ''.join(('<b>Runs</b>' if g.parent.name == 'runs' and h.parent.name != 'runs' else '') +
                      f'<a href="{up}{url(g)}"{" class=here" if g == f else ""}>{html.escape(f"{g.stem[:2]} {t}" if g.stem[:2].isdigit() else t)}</a>'
                      for (g, t), (h, _) in zip(pages, pages[:1] + pages))
        body = HTMLExporter(template_name='basic').from_notebook_node(visible(nbformat.read(f, 4)))[0]
        body = re.sub(r'(href="(?![a-z]+:)[^"]+)\.ipynb', r'\1.html', body)
        if not up: body = re.sub(r'href="\.\./', f'href="{git_url}/blob/main/', body)   # files beside nbs/ are not on the site
        out = target/url(f)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page.format(title=html.escape(title), style=style_all, nav=nav, body=body), encoding='utf-8')
    if (root/'nbs/images').is_dir(): shutil.copytree(root/'nbs/images', target/'images')
    (target/'.nojekyll').touch()
    print(f'{len(pages)} pages: open {target/"index.html"}')

if __name__ == '__main__': build(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else root/'_docs')
