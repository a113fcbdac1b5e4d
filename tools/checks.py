"""What `make test` checks beside the notebooks' own tests: house rules, and that the package is what the notebooks say.

Each check returns a list of problems, one sentence each; an empty list is a pass.
"""
import ast, re, shutil, sys, tempfile
from collections import defaultdict
from functools import cache
from importlib import metadata
from pathlib import Path
import nbformat
import machines, readme
from common import (Failure, code, config, directive, exported, flags_known, is_run, module_of, name, notebooks,
                    process, python, root, tagged, tail, without_magic)

max_kb = 400        # of a notebook
max_columns = 120   # of a line of code: of every cell, of tools and of tests; not of a text within it
max_lines = 40      # of an exported cell
max_module = 450    # lines of a module

# Names that two modules may export, each with the reason.
commands = 'the command line has a function a command, named after the function that does the work'
shared_names = {
    **{n: commands for n in ('fetch', 'interpolate', 'reconstruct', 'score', 'vet')},
    'models': 'training has the table of 0.1.0 under this name until 0.3; the registry is models.saved.models',
}

# Imports that settings.ini need not ask for, each with the reason.
optional = {
    'wandb': 'only where a run asks for it',
    **{n: 'a library that nbs/runs/benchmark.ipynb compares with, where it is installed'
       for n in ('diffdrr', 'itk', 'torchio')},
    **{n: 'a library that tests/conventions.py compares with, where it is installed' for n in ('astra', 'nanodrr')},
}

# ---------------------------------------------------------------- package, notebooks and README in sync
def copy_and(command):
    "Run an nbdev command in a copy of the notebooks and the settings. Returns the copy's folder."
    folder = Path(tempfile.mkdtemp(prefix='xray_ct_test_'))
    shutil.copytree(root/'nbs', folder/'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints', '__pycache__'))
    shutil.copy(root/'settings.ini', folder)
    (folder/'xray_ct').mkdir()
    shutil.copy(root/'xray_ct/__init__.py', folder/'xray_ct')
    rc, out = python('-c', command, cwd=folder)
    if rc:
        shutil.rmtree(folder)
        raise Failure(tail(out))
    return folder

def check_sync():
    "The package is exactly what the notebooks export, in a copy that starts from nothing."
    folder = copy_and('from nbdev import nbdev_export; nbdev_export()')
    def files(top): return {p.relative_to(top).as_posix(): p.read_bytes() for p in (top/'xray_ct').rglob('*.py')}
    made, ours = files(folder), files(root)
    shutil.rmtree(folder)
    def why(f): return 'no notebook exports it' if f not in made else 'missing' if f not in ours else 'differs'
    return [f'{f}: {why(f)}. Run nbdev_export' for f in sorted({*made, *ours}) if made.get(f) != ours.get(f)]

def check_clean():
    "nbdev_clean would change nothing."
    folder = copy_and('from nbdev.clean import nbdev_clean; nbdev_clean.__wrapped__()')
    def cleaned(f): return (folder/f.relative_to(root)).read_bytes()
    out = [f'{name(f)}: is not clean. Run nbdev_clean' for f in notebooks() if cleaned(f) != f.read_bytes()]
    shutil.rmtree(folder)
    return out

def check_executed():
    "Every notebook is saved with its outputs, and none of them is an error or names a place on somebody's machine."
    out, silent = [], 'default_exp|exporti?|exports|hide|' + '|'.join(flags_known)
    places = {str(root), str(Path.home())} - {'/'}
    for f in notebooks():
        cells = code(f)
        speaks = any(c.source.strip() and not directive(c, silent) for c in cells)
        if speaks and not any(c.outputs for c in cells):
            out.append(f'{name(f)}: no output is saved. Run `make notebook NB={name(f)}`')
        if any(o.output_type == 'error' for c in cells for o in c.outputs):
            out.append(f'{name(f)}: a saved output is an error')
        text = f.read_text(encoding='utf-8')
        out += [f'{name(f)}: names a place on one machine, {p}' for p in places if p + '/' in text]
    return out

def check_readme():
    "README.md is what nbs/index.ipynb says, its links exist, and it names every notebook."
    text = (root/'nbs/index.ipynb').read_text(encoding='utf-8')
    absent = [f for f in notebooks() if f.stem != 'index' and f.name not in text]
    return readme.stale() + [f'nbs/index.ipynb: does not name {f.name}' for f in absent]

# ---------------------------------------------------------------- house rules
def first_line(source):
    "What a cell is recognised by."
    return next((l for l in source.splitlines() if l.strip() and not l.lstrip().startswith('#')), '')[:60]

def form_of_notebook(f, nb):
    "Problems of a notebook as a whole."
    head = nb.cells[0].source if nb.cells and nb.cells[0].cell_type == 'markdown' else ''
    titled = head.startswith('# ') and re.search(r'^> \S', head, re.M)
    if not titled: yield 'begins with no `# Title` and `> sentence`'
    k = nb.metadata.get('kernelspec', {})
    if (k.get('name'), k.get('language')) != ('python3', 'python'):
        yield f'kernelspec is {dict(k)}, not python3 with its language'
    if nb.nbformat_minor < 5: yield 'is older than nbformat 4.5: cells have no ids'
    if 'widgets' in nb.metadata: yield 'widget state is saved in it'
    if f.stat().st_size > max_kb*1000: yield f'{f.stat().st_size//1000} kB, more than {max_kb}'
    if any(re.search(r'skip_exec:\s*true', c.source) for c in nb.cells): yield 'skip_exec hides it from the tests'
    source = '\n'.join(c.source for c in nb.cells if c.cell_type == 'code')
    tests = re.search(r'\b(assert|test_\w+|expect_fail|allclose)\b', source)
    if not (tests or is_run(f) or f.stem == 'index'): yield 'nothing is asserted in it'

def form_of_cell(c):
    "Problems of an exported cell."
    lines, first = c.source.splitlines(), first_line(c.source)
    if len(lines) > max_lines:
        yield f'an exported cell of {len(lines)} lines, more than {max_lines} ({first})'
    if directive(c, '|'.join(flags_known)): yield f'a flag drops an exported cell ({first})'
    if re.search(r'^\s*from .+ import \*|^\s*(from|import) (fastai\.(vision|medical)|torchvision)', c.source, re.M):
        yield f'an import that is not allowed in exports ({first})'

def wide(lines):
    return [f'{len(l)} columns, more than {max_columns} ({l.strip()[:60]})' for l in lines if len(l) > max_columns]

def without_texts(source):
    "Code without what its strings of several lines say, such as a page or a card."
    return re.sub(r'(\"{3}|\'{3}).*?\1', lambda m: '\n'*m[0].count('\n'), source, flags=re.S)

def scripts(): return sorted(f for folder in ('tools', 'tests') for f in (root/folder).glob('*.py'))

def check_form():
    "The house rules that a program can see."
    out = []
    for f in notebooks():
        out += [f'{name(f)}: {p}' for p in form_of_notebook(f, nbformat.read(f, 4))]
        out += [f'{name(f)}: {p}' for c in exported(f) for p in form_of_cell(c)]
        out += [f'{name(f)}: {p}' for c in code(f) for p in wide(without_texts(c.source).splitlines())]
    for f in scripts():
        out += [f'{name(f)}: {p}' for p in wide(f.read_text(encoding='utf-8').splitlines())]
    return out

# ---------------------------------------------------------------- rooms: chapters, layers, names
def modules(): return {m: f for f in notebooks() if not is_run(f) and (m := module_of(f))}

def tree_of(f): return ast.parse('\n'.join(without_magic(c.source) for c in exported(f)))

def imports(tree):
    "(module, name or None) of every import in the code, also within functions."
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module: yield from ((node.module, a.name) for a in node.names)
        elif isinstance(node, ast.Import): yield from ((a.name, None) for a in node.names)

def check_layers():
    "A module imports only from notebooks before its own: reading order is dependency order."
    found, out = modules(), set()
    for module, f in found.items():
        for source, imported in imports(tree_of(f)):
            for n in {source, f'{source}.{imported}'}:
                other = n.removeprefix('xray_ct.')
                if n.startswith('xray_ct.') and other in found and found[other].stem >= f.stem and other != module:
                    out.add(f'{name(f)}: imports xray_ct.{other}, which comes later ({found[other].stem})')
    return sorted(out)

def public_names(tree):
    "What the top level of a module defines: functions, classes and values, but neither imports, patches nor aliases."
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            if not any('patch' in ast.unparse(d) for d in node.decorator_list): yield node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)) and not isinstance(node.value, (ast.Name, ast.Attribute)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name))

def check_rooms():
    "One number a chapter, one module a name, no borrowed underscores, no room too long."
    out, found, numbers, homes = [], modules(), defaultdict(list), defaultdict(set)
    for f in notebooks():
        if (n := re.match(r'[0-9]+', f.stem)) and not is_run(f): numbers[n[0]].append(f.stem)
    out += [f'nbs: {", ".join(who)} have the same number {n}' for n, who in sorted(numbers.items()) if len(who) > 1]
    for module, f in found.items():
        tree = tree_of(f)
        for n in public_names(tree):
            if not n.startswith('_') and n not in shared_names: homes[n].add(module)
        out += [f'{name(f)}: imports {n} from {source}. Give it a public name there' for source, n in imports(tree)
                if n and n.startswith('_') and source.split('.')[0] == 'xray_ct']
        lines = len((root/'xray_ct'/(module.replace('.', '/') + '.py')).read_text(encoding='utf-8').splitlines())
        if lines > max_module:
            out.append(f'{name(f)}: the module has {lines} lines, more than {max_module}; split it by trade')
    return out + [f'{n}: is defined in {", ".join(sorted(where))}; import it, or give it another name'
                  for n, where in sorted(homes.items()) if len(where) > 1]

# ---------------------------------------------------------------- run notebooks
def smoke_parameters(path):
    "A run notebook's values for a quick run: `epochs = 20  # passes (smoke: 1)` → `epochs: 1`."
    pattern = re.compile(r'^(\w+)\s*=[^#\n]*(?:\n[^=#\n]*)*#.*\(smoke:\s*(.+)\)\s*$', re.M)
    return {m[1]: m[2] for c in tagged(path, 'parameters') for m in pattern.finditer(c.source)}

def check_runs():
    "A run notebook has one parameters cell, checked in the next code cell, values for a quick run, a folder to go to."
    told = {d for f in notebooks() for d in re.findall(r'\.ipynb (runs/\w+)/\w+\.ipynb', f.read_text(encoding='utf-8'))}
    out = [f'{d}/.gitkeep: is missing; papermill makes no folder for its copy' for d in sorted(told)
           if not (root/d/'.gitkeep').exists()]
    for f in filter(is_run, notebooks()):
        cells, found = code(f), tagged(f, 'parameters')
        if len(found) != 1:
            out.append(f'{name(f)}: {len(found)} cells are tagged `parameters`; papermill would use the wrong values')
            continue
        after = cells[[c.id for c in cells].index(found[0].id) + 1:][:1]
        if not after or 'check_parameters(' not in after[0].source:
            out.append(f'{name(f)}: the cell after the parameters does not call check_parameters')
        if not re.search(r'^out\s*=', found[0].source, re.M): out.append(f'{name(f)}: has no parameter `out`')
        if not smoke_parameters(f): out.append(f'{name(f)}: no parameter says `(smoke: value)`')
    if not (root/'nbs/runs/.notest').exists():
        out.append('nbs/runs/.notest: is missing; nbdev_test would run the full trainings')
    return out

# ---------------------------------------------------------------- what is installed
def requirements():
    from packaging.requirements import Requirement
    settings = config['DEFAULT']
    return [Requirement(r) for r in (settings['requirements'] + ' ' + settings['dev_requirements']).split()]

def check_environment():
    "What is imported is asked for in settings.ini, and what is asked for is installed."
    out = []
    for r in requirements():
        try: version = metadata.version(r.name)
        except metadata.PackageNotFoundError: out.append(f'{r}: is not installed. Run make install')
        else:
            if not r.specifier.contains(version, prereleases=True): out.append(f'{r}: version {version} is installed')
    asked, providers = with_dependencies(), metadata.packages_distributions()
    known = {*sys.stdlib_module_names, *optional, 'xray_ct', *(f.stem for f in scripts())}
    for where, tree in sources():
        for top in sorted({source.split('.')[0] for source, _ in imports(tree)} - known):
            if not {normal(d) for d in providers.get(top, [])} & asked:
                out.append(f'{where}: imports {top}, which settings.ini does not ask for')
    return out

def normal(distribution): return re.sub(r'[-_.]+', '-', distribution).lower()

def with_dependencies():
    "The distributions that settings.ini asks for, with those that they bring themselves."
    from packaging.requirements import Requirement
    out, todo = set(), [r.name for r in requirements()]
    while todo:
        d = normal(todo.pop())
        if d in out: continue
        out.add(d)
        try: needs = map(Requirement, metadata.requires(d) or [])
        except metadata.PackageNotFoundError: continue
        todo += [r.name for r in needs if not r.marker or r.marker.evaluate({'extra': ''})]
    return out

@cache
def sources():
    "(name, syntax tree) of everything that tests run."
    return [*((name(f), ast.parse('\n'.join(plain_code(c.source) for c in code(f)))) for f in notebooks()),
            *((name(f), ast.parse(f.read_text(encoding='utf-8'))) for f in scripts())]

def plain_code(source):
    "A cell without magic lines; a cell that is all magic says nothing."
    return '' if source.lstrip().startswith('%%') else without_magic(source)

# ---------------------------------------------------------------- what a user feels, in processor time
def processor_seconds(cmd, n=3):
    "The least processor time of n runs of a command, and the last run's exit code and output."
    import resource
    def used(): return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    times = []
    for _ in range(n):
        before = used()
        rc, out = process(cmd, 60)
        times.append(used() - before)
    return min(times), rc, out

def check_import():
    "`import xray_ct` takes at most 0.2 s of processor time, on the machine of reference."
    clock = 'import time; t = time.process_time(); import xray_ct; print(time.process_time() - t)'
    outs = [python('-c', clock) for _ in range(5)]
    if any(rc for rc, _ in outs): return [tail(outs[0][1])]
    seconds, limit = min(float(out) for _, out in outs), .2*machines.slowness().processor
    return [f'import xray_ct: takes {seconds:.2f} s, more than {limit:.2f}'] if seconds > limit else []

def check_names():
    "No module, notebook, tool or test uses a name that is defined nowhere: a merge can lose an import."
    from pyflakes import checker, messages
    undefined = messages.UndefinedName, messages.UndefinedLocal, messages.UndefinedExport
    modules = [(name(f), ast.parse(f.read_text(encoding='utf-8'))) for f in sorted((root/'xray_ct').rglob('*.py'))]
    return [f'{where}: {m.message % m.message_args}' for where, tree in [*modules, *sources()]
            for m in checker.Checker(tree, builtins={'display', 'get_ipython'}).messages if isinstance(m, undefined)]

def check_unused():
    "No module, tool or test imports or assigns what it does not use, except what has moved and stays for a release."
    from pyflakes import checker, messages
    out = []
    for f in [*sorted((root/'xray_ct').rglob('*.py')), *scripts()]:
        source = f.read_text(encoding='utf-8')
        tree, lines = ast.parse(source), source.splitlines()
        ends = {n.lineno: n.end_lineno for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))}
        def kept(m): return re.search(r'#.*\buntil \d', '\n'.join(lines[m.lineno - 1:ends[m.lineno]]))
        for m in checker.Checker(tree).messages:
            if isinstance(m, messages.UnusedVariable) or isinstance(m, messages.UnusedImport) and not kept(m):
                out.append(f'{name(f)}:{m.lineno}: {m.message % m.message_args}')
    return out

def texts(f):
    "The string literals of a module."
    return [n.value for n in ast.walk(ast.parse(f.read_text(encoding='utf-8')))
            if isinstance(n, ast.Constant) and isinstance(n.value, str)]

def check_remedies():
    "Every option and command of ours that a message names can be typed, and a remedy is a sentence of its own."
    import typer
    from importlib import import_module
    from xray_ct import cli
    for room in cli.rooms: import_module(room)
    known = typer.main.get_command(cli.app).commands
    options = {o for c in known.values() for p in c.params for o in (*p.opts, *p.secondary_opts)}
    options |= {'--help', '--debug'}
    foreign = {'--raw', '--short', '--error-unmatch', '--porcelain', '--untracked-files', '--nproc_per_node',
               '--num_processes'}
    out = []
    for f in sorted((root/'xray_ct').rglob('*.py')):
        if f.name == 'report.py': continue  # style sheets
        for text in texts(f):
            words = set(re.findall(r'xray_ct ([a-z][a-z-]+)', text)) - {'phantoms', *known}
            flags = set(re.findall(r'(?<![\w-])--[a-z][\w-]+', text)) - options - foreign
            out += [f'{name(f)}: names {w}, which does not exist: {text[:60]!r}' for w in sorted(words | flags)]
            if re.search(r'; (give|choose|export|copy|correct|convert|leave|remove|check the|use) ', text):
                out.append(f'{name(f)}: what helps is a sentence of its own (`what is wrong. Remedy`): {text[:60]!r}')
    return out

def check_command():
    "`xray_ct --help` and a wrong argument answer within 1 s of processor time; the latter with code 2, no traceback."
    out, limit = [], machines.slowness().processor
    for args, want in ((['--help'], 0), (['train', '--no-such-option'], 2), (['no-such-command'], 2)):
        said = f'xray_ct {" ".join(args)}'
        seconds, rc, text = processor_seconds([Path(sys.executable).parent/'xray_ct', *args])
        if seconds > limit: out.append(f'{said}: {seconds:.2f} s, more than {limit:.2f}')
        if rc != want or 'Traceback' in text: out.append(f'{said}: exit code {rc}, not {want}\n{tail(text, 10)}')
    return out

checks = {
    'package in sync': check_sync, 'notebooks clean': check_clean, 'notebooks executed': check_executed,
    'house rules': check_form, 'layers': check_layers, 'rooms': check_rooms, 'run notebooks': check_runs,
    'README in sync': check_readme, 'environment': check_environment, 'names': check_names,
    'unused names': check_unused, 'remedies': check_remedies, 'import in 0.2 s': check_import,
    'command line in 1 s': check_command,
}
