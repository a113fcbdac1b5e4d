"""The API reference in Markdown: every public name of every module, read from the source without importing it.

A parameter's comment (its docment) is the one on its own line or on the lines above it:
`sdd: float = 1800.,  # source-to-detector distance, mm`.
"""
import ast, html, io, re, tokenize
from pathlib import Path

def comments_of(source):
    "{line number: comment} and the set of lines that hold nothing but a comment."
    found, alone = {}, set()
    for t in tokenize.generate_tokens(io.StringIO(source).readline):
        if t.type != tokenize.COMMENT: continue
        found[t.start[0]] = t.string.lstrip('# ').strip()
        if not t.line[:t.start[1]].strip(): alone.add(t.start[0])
    return found, alone

class Module:
    "One module's public names: functions, classes with their methods, and values."
    def __init__(self,
        path:Path, # of the .py file
        root:Path, # the repository
    ):
        self.path, self.name = path, '.'.join(path.relative_to(root).with_suffix('').parts)
        self.source = path.read_text(encoding='utf-8')
        self.comments, self.comment_lines = comments_of(self.source)
        tree = ast.parse(self.source)
        self.doc = ast.get_docstring(tree) or ''
        assigned = {t.id: n for n in tree.body if isinstance(n, ast.Assign) for target in n.targets
                    for t in ast.walk(target) if isinstance(t, ast.Name)}
        self.public = ast.literal_eval(assigned['__all__'].value) if '__all__' in assigned else []
        definitions = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
        self.named = assigned | {n.name: n for n in definitions if not patched(n)}
        self.methods = {}   # {class: [functions that @patch adds to it]}
        for n in definitions:
            for name in patched(n): self.methods.setdefault(name, []).append(n)
        origin = re.search(r'File to edit: (?:\.\./)+(nbs/\S+\.ipynb)', self.source)
        self.notebook = origin[1] if origin else ''
        imports = [n for n in tree.body if isinstance(n, ast.ImportFrom)]
        self.imported = {a.asname or a.name: n.module or '' for n in imports for a in n.names}

    def docment(self, node, stop):
        "The comment on the lines of `node`, else on the lines right above it."
        last = node.end_lineno
        if last in self.comments and last not in self.comment_lines: return self.comments[last]
        above, line = [], node.lineno - 1
        while line in self.comment_lines and line > stop: above.insert(0, self.comments[line]); line -= 1
        return ' '.join(above)

def patched(node):
    "The classes that fastcore's @patch puts this function into."
    if not isinstance(node, ast.FunctionDef): return []
    if not any('patch' in ast.unparse(d) for d in node.decorator_list): return []
    first = (node.args.posonlyargs + node.args.args)[:1]
    return re.findall(r'\w+', ast.unparse(first[0].annotation)) if first and first[0].annotation else []

def parameters(module, f):
    "(name, type, default, comment) of a function's parameters, without `self`."
    a = f.args
    plain = a.posonlyargs + a.args
    defaults = dict(zip([p.arg for p in plain][len(plain) - len(a.defaults):], a.defaults))
    defaults |= {p.arg: d for p, d in zip(a.kwonlyargs, a.kw_defaults) if d is not None}
    everything = [*((p, '') for p in plain), (a.vararg, '*'), *((p, '') for p in a.kwonlyargs), (a.kwarg, '**')]
    closing = f.returns.end_lineno if f.returns is not None else 0   # a comment on this line is about what comes back
    rows = []
    for p, star in everything:
        if p is None or p.arg in ('self', 'cls'): continue
        default = defaults.get(p.arg)
        kind, said = ast.unparse(p.annotation) if p.annotation else '', module.docment(default or p, f.lineno)
        if (default or p).end_lineno == closing: said = ''
        if kind.startswith('Annotated['): kind, said = option(p.annotation, said)
        rows.append((star + p.arg, kind, ast.unparse(default) if default is not None else '', said))
    return rows

def option(annotation, said):
    "Type and help of a command line's `Annotated[type, typer.Option(..., help=...)]`."
    kind, *more = annotation.slice.elts
    for call in (m for m in more if isinstance(m, ast.Call)):
        helps = [k.value for k in call.keywords if k.arg == 'help' and isinstance(k.value, ast.Constant)]
        if helps: said = helps[0].value
    return ast.unparse(kind), said

def fields(module, c):
    "(name, type, default, comment) of a dataclass's fields."
    named = [n for n in c.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    default = lambda n: ast.unparse(n.value) if n.value else ''
    return [(n.target.id, ast.unparse(n.annotation), default(n), module.docment(n, c.lineno))
            for n in named if not n.target.id.startswith('_')]

def cell(text, code=False):
    "Text that cannot break out of its table cell."
    text = ' '.join(str(text).split())
    if not text: return ''
    escaped = html.escape(text, quote=False).replace('|', '&#124;')
    as_code = lambda t: f'<code>{t.replace("*", "&#42;").replace("_", "&#95;")}</code>'
    if code: return as_code(escaped)
    parts = re.split(r'`([^`]+)`', escaped)
    safe = lambda t: re.sub(r'([*_$\[\]\\~^])', r'\\\1', t)
    return ''.join(as_code(p) if i % 2 else safe(p) for i, p in enumerate(parts))

def table(rows):
    "The parameters as a table; columns that are empty everywhere are left out."
    heads = ('parameter', 'type', 'default', 'meaning')
    used = [i for i in range(4) if any(r[i] for r in rows)]
    lines = ['| ' + ' | '.join(heads[i] for i in used) + ' |', '|' + '---|'*len(used)]
    return '\n'.join(lines + ['| ' + ' | '.join(cell(r[i], code=i < 3) for i in used) + ' |' for r in rows])

def returned(module, f):
    "What comes back: type and comment, or ''."
    if f.returns is None: return ''
    said = module.docment(f.returns, f.lineno)
    return f'**Returns** {cell(ast.unparse(f.returns), code=True)}' + (f': {cell(said)}' if said else '')

def signature(name, f, rows):
    "The call as one would type it, wrapped when long."
    shown = [n + (f': {k}' if k else '') + (f' = {d}' if d and k else f'={d}' if d else '') for n, k, d, _ in rows]
    names = [a.arg for a in f.args.kwonlyargs] if isinstance(f, ast.FunctionDef) else []
    if names and not f.args.vararg: shown.insert([r[0] for r in rows].index(names[0]), '*')
    arrow = f' -> {ast.unparse(f.returns)}' if isinstance(f, ast.FunctionDef) and f.returns is not None else ''
    line = f'{name}({", ".join(shown)}){arrow}'
    return line if len(line) <= 88 else f'{name}(\n    ' + ',\n    '.join(shown) + f'\n){arrow}'

def public_method(f):
    "Is this method for users? Setters and deleters of a property are not shown a second time."
    return not f.name.startswith('_') and not any('setter' in ast.unparse(d) for d in f.decorator_list)

def describe(module, name, node, link, level=2):
    "One public name as Markdown."
    out = [f'{"#"*level} `{name}` {{ #{name} }}']
    short = name.rsplit('.', 1)[-1]
    if isinstance(node, ast.Assign):
        value = ast.unparse(node.value)
        if len(value) > 600: value = value[:600] + ' …'
        targets = ast.unparse(node.targets[0]).strip('()')
        return '\n\n'.join([*out, cell(module.docment(node, 0)), f'```python\n{targets} = {value}\n```', link(node)])
    if isinstance(node, ast.ClassDef):
        functions = [n for n in node.body if isinstance(n, ast.FunctionDef)] + module.methods.get(node.name, [])
        init = next((n for n in functions if n.name == '__init__'), None)
        rows = parameters(module, init) if init else fields(module, node)
        bases = ', '.join(ast.unparse(b) for b in node.bases)
        based = f' based on {cell(bases, code=True)}' if bases else ''
        out += [f'```python\n{signature(short, init or node, rows)}\n```', f'A class{based}. {link(node)}']
    else:
        rows, functions = parameters(module, node), []
        kinds = [ast.unparse(d) for d in node.decorator_list]
        what = 'A property. ' if any('property' in k or 'as_prop' in k for k in kinds) else ''
        out += [f'```python\n{signature(short, node, rows)}\n```', what + link(node)]
    out += [cell(ast.get_docstring(node) or ''), table(rows) if rows else '']
    if isinstance(node, ast.FunctionDef): out.append(returned(module, node))
    for n in {n.name: n for n in functions if public_method(n)}.values():
        out.append(describe(module, f'{name}.{n.name}', n, link, level + 1))
    return '\n\n'.join(t for t in out if t)

def page(module, git_url):
    "A module's page."
    def link(node): return f'[source]({git_url}/blob/main/{module.name.replace(".", "/")}.py#L{node.lineno})'
    head = ['---\nsearch:\n  boost: 2\n---', f'# {module.name}', cell(module.doc)]
    page_of = module.notebook.removeprefix('nbs/').replace('.ipynb', '.md')
    if page_of: head.append(f'Explained, with its tests, in [{module.notebook}](../{page_of}).')
    named = [(n, module.named[n]) for n in module.public if n in module.named]
    kept = [n for n in module.public if n not in module.named and n in module.imported]
    if kept: head.append('Kept here for one release: ' + ', '.join(f'`{n}` (of `{module.imported[n]}`)' for n in kept))
    return '\n\n'.join(head + [describe(module, n, node, link) for n, node in named]) + '\n'

def modules(root):
    "Every module with something public, in the order of their notebooks."
    files = [f for f in sorted((root/'xray_ct').rglob('*.py')) if f.name not in ('__init__.py', '_modidx.py')]
    found = [Module(f, root) for f in files]
    return sorted((m for m in found if m.public), key=lambda m: (m.notebook, m.name))
