"""Every option of the command line, and every field of every config, does something.

    python tests/arrives.py           # about two minutes of processor time; `--only train` for a part

Commands: each option is given a value that is not its default, and the call that reaches the library must have it
(the library's functions are replaced, so nothing heavy runs). Configs: each field is changed, and something that can
be observed must change with it: weights, outputs, losses, operations, items of a data set, files of a training.
An option or a field without an entry here fails, and so does one that changes nothing.
"""
import contextlib, hashlib, importlib.util, inspect, io, os, sys, tempfile, time, warnings, zlib
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
warnings.filterwarnings('ignore')
import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
torch.set_num_threads(1)

only = sys.argv[sys.argv.index('--only') + 1] if '--only' in sys.argv else ''
problems, done = [], Counter()

def check(where, ok, what):
    "Count a check, and say where it fails."
    done[where.split('.')[0]] += 1
    if ok: return
    problems.append(where)
    print(f'FAIL {where}: {what}', flush=True)

# ---------------------------------------------------------------- what is called with what
class Arrived(Exception):
    "A replaced function was called that ends the command."

class Spies:
    "Replace functions of the library; `seen` holds the arguments by name."
    def __init__(self, **replaced):   # 'module:name' with __ for dots → what it returns, or Arrived
        self.replaced, self.seen, self.old = replaced, {}, []
    def __enter__(self):
        for place, result in self.replaced.items():
            module, _, name = place.rpartition('__')
            *outer, name = name.split('_of_')[::-1]
            owner = importlib.import_module('xray_ct.' + module.replace('__', '.'))
            for o in outer: owner = getattr(owner, o)
            self.old.append((owner, name, inspect.getattr_static(owner, name)))
            setattr(owner, name, self.spy(name, getattr(owner, name), result))
        return self
    def __exit__(self, *error):
        for owner, name, value in reversed(self.old): setattr(owner, name, value)
    def spy(self, name, function, result):
        signature = inspect.signature(function)
        def called(*args, **kwargs):
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            self.seen.setdefault(name, {}).update(bound.arguments)
            if result is Arrived: raise Arrived(name)
            return result(*args, **kwargs) if callable(result) else result
        return called

def dig(thing, path):
    "thing.a.b, or thing['a']['b']."
    for name in filter(None, path.split('.')):
        thing = thing[name] if isinstance(thing, dict) else thing[int(name)] if name.isdigit() else getattr(thing, name)
    return thing

def either(module, *names):
    "The name that this version's module has, as a place for `Spies`."
    loaded = importlib.import_module('xray_ct.' + module.replace('__', '.'))
    return f'{module}__' + next(n for n in names if hasattr(loaded, n))

absent = object()   # what a function was given that was never called

def value_of(seen, place):
    try: return dig(seen, place)
    except (KeyError, AttributeError): return absent

# ---------------------------------------------------------------- the commands
def command_tables(top):
    "Command → (its arguments, replaced functions, {option: (arguments, place, what must be there)})."
    from xray_ct.data.phantom import thorax
    from xray_ct.projector import Geometry
    from xray_ct.blocks.vae import MaisiVAE, vae_preset
    from xray_ct.data.cohort import CohortConfig
    from xray_ct.files import write_json
    from xray_ct.models.direct import direct_preset
    vol = thorax(1, size=16, spacing=20.)
    ct, cts, run, out = top/'ct.nii.gz', top/'cts', top/'run', top/'out'
    for folder in (cts, run): folder.mkdir()
    vol.save(ct)
    write_json(run/'config.json', dict(kind='direct', model=direct_preset('tiny', CohortConfig().geometry()).to_dict()))
    MaisiVAE(vae_preset('small')).save(top/'vae')
    for name in ('ap.png', 'lat.png', 'thin.nii.gz', 'other.json'): (top/name).write_bytes(b'x')
    (top/'own.py').write_bytes(b'')
    earlier = top/'earlier'
    earlier.mkdir()
    for name in ('geometry.json', 'ct.nii.gz'): (earlier/name).write_bytes(b'x')
    g = Geometry.for_field(320., 16, 16)
    read = lambda path, *a, **kw: vol
    lines = lambda *a, **kw: (torch.ones(2, 16, 16), g, {})
    saved = importlib.util.find_spec('xray_ct.models.saved')   # a file of one's own that declares a model: since 0.2
    own = dict(models__saved__use_file='') if saved else {}
    own_file = f'--model {top/"own.py"}', 'use_file.spec', top/'own.py'
    staged_out, staged_earlier = (lambda p, n=n: p.parent.name.startswith(f'.{n}') for n in ('out', 'earlier'))
    again = f'--overwrite -o {earlier}'
    tables = {}
    tables['drr'] = (['drr', ct, '-o', out], dict(data__dicom__read_ct=read, data__drr__make_drr=lines,
                                                  data__radiograph__write_xrays=Arrived), {
        'ct': ('', 'read_ct.path', ct), 'out': ('', 'write_xrays.folder', staged_out),
        'size': ('--size 96', 'make_drr.size', 96), 'views': ('--views lao45', 'make_drr.views', ('lao45',)),
        'mode': ('--mode parallel', 'make_drr.mode', 'parallel'), 'sdd': ('--sdd 1900', 'make_drr.sdd', 1900.),
        'sid': ('--sid 1400', 'make_drr.sid', 1400.), 'pixel': ('--pixel 3', 'make_drr.pixel', 3.),
        'field': ('--field 300', 'make_drr.field', 300.), 'noise': ('--noise 1e5', 'make_drr.noise', 1e5),
        'kev': ('--kev 80', 'make_drr.kev', 80.), 'seed': ('--seed 7', 'make_drr.seed', 7),
        'series': ('--series X', 'read_ct.series', 'X'),
        'overwrite': (again, 'write_xrays.folder', staged_earlier)})
    fit = dict(distributed__fit_by=Arrived)
    common = {
        'cts': ('', 'fit_by.root', cts), 'out': ('', 'fit_by.run', out), 'seed': ('--seed 7', 'fit_by.config.seed', 7),
        'minutes': ('--minutes 3 --epochs 0', 'fit_by.config.minutes', 3.),
        'epochs': ('--epochs 5', 'fit_by.config.epochs', 5), 'set_': ('--set lr=0.5', 'fit_by.config.lr', .5),
        'cache': (f'--cache {top/"kept"}', 'fit_by.cache', top/'kept'),
        'processes': ('--processes 3', 'fit_by.processes', 3)}
    tables['train'] = (['train', cts, '-o', out, '--epochs', 1], fit, {
        **common, 'model': ('--model hybrid', 'fit_by.config.model', 'hybrid'),
        'preset': ('--preset base', 'fit_by.config.preset', 'base'),
        'previous': (f'--model cascade --previous {run}', 'fit_by.config.previous', str(run)),
        'size': ('--size 32', 'fit_by.config.cohort.size', 32),
        'spacing': ('--spacing 4', 'fit_by.config.cohort.spacing', 4.),
        'xrays': ('--xrays full', 'fit_by.config.cohort.xrays', 'full')})
    tables['train-slices'] = (['train-slices', cts, '-o', out, '--epochs', 1], fit, {
        **common, 'model': ('--model latent', 'fit_by.config.model', 'latent'),
        'preset': ('--preset base', 'fit_by.config.preset', 'base'),
        'vae': (f'--model latent --vae {top/"vae"}', 'fit_by.config.autoencoder', str(top/'vae')),
        'ratios': ('--ratios 4', 'fit_by.config.cohort.ratios', (4.,))})
    tables['preprocess'] = (['preprocess', cts, '-c', out], dict(
        data__cohort__find_cases=lambda root: list('abcdef'), data__cohort__prepare_cases=Arrived), {
        'cts': ('', 'find_cases.root', cts), 'cache': ('', 'prepare_cases.cache', out),
        'slices': ('--slices', 'prepare_cases.prepare.__name__', 'prepare_series'),
        'size': ('--size 32', 'prepare_cases.config.size', 32),
        'spacing': ('--spacing 4', 'prepare_cases.config.spacing', 4.),
        'xrays': ('--xrays full', 'prepare_cases.config.xrays', 'full'),
        'shard': ('--shard 2/3', 'prepare_cases.cases', ['b', 'e']),
        'processes': ('--processes 3', 'prepare_cases.processes', 3)})
    step = lambda *a, **kw: dict(model=None, inputs=dict(xrays=(1,), target=(1,)), loss=None, copies=1)
    place = either('training', 'dry_run_step', 'rehearsal')
    dry = place.split('__')[-1]
    tables['vet'] = (['vet', 'cascade:tiny'], {place: step, 'memory__vet': Arrived}, {
        'what': ('', f'{dry}.config.model', 'cascade'), 'size': ('--size 32', f'{dry}.config.cohort.size', 32),
        'spacing': ('--spacing 4', f'{dry}.config.cohort.spacing', 4.),
        'batch': ('--batch 3', f'{dry}.config.batch_size', 3), 'gpu': ('--gpu A100', 'vet.gpu', 'A100'),
        'precision': ('--precision float32', 'vet.precision', 'float32'),
        'checkpointing': ('--checkpointing', 'vet.checkpointing', True),
        'blocks': ('--blocks head', 'vet.checkpointing', ['head']), 'offload': ('--offload', 'vet.offload', True),
        'predict': [('--predict', 'vet.train', False), ('--predict', 'vet.inputs', dict(xrays=(1,)))],
        'cases': ('--cases 9', f'{dry}.cases', 9), 'model': own_file,
        'previous': (f'--previous {run}', f'{dry}.config.previous', str(run)),
        'set_': ('--set lr=0.5', f'{dry}.config.lr', .5)})
    tables['vet'][1].update(own)
    tables['reconstruct'] = (['reconstruct', top/'ap.png', top/'lat.png', '-o', out, '--weights', run], dict(
        data__dicom__read_ct=lambda path, *a, **kw: f'read {path}', reconstruct__save_of_Reconstruction=Arrived, **own,
        reconstruct__reconstruct=lambda *a, **kw: object.__new__(sys.modules['xray_ct.reconstruct'].Reconstruction)), {
        'ap': ('', 'reconstruct.xrays.0', top/'ap.png'), 'lat': ('', 'reconstruct.xrays.1', top/'lat.png'),
        'out': ('', 'save.folder', staged_out), 'weights': ('', 'reconstruct.weights', run),
        'geometry': (f'--geometry {top/"other.json"}', 'reconstruct.geometry', top/'other.json'),
        'truth': (f'--truth {ct}', 'save.truth', f'read {ct}'),
        'consistency': ('--no-consistency', 'reconstruct.consistency', False),
        'force': ('--force', 'reconstruct.refuse', False),
        'known_slices': (f'--known-slices {cts}', 'reconstruct.known_slices', cts),
        'prior': (f'--prior {ct}', 'reconstruct.prior', ct),
        'magnification': ('--magnification estimated', 'reconstruct.magnification', 'estimated'),
        'model': own_file, 'overwrite': (again, 'save.folder', staged_earlier)})
    usable = lambda *a, **kw: importlib.import_module('xray_ct.check').Check([], [])
    spies = dict(cli_check__check_pictures=usable, check__save_check=None)
    tables['check'] = (['check', top/'ap.png', top/'lat.png'], spies, {
        'ap': ('', 'check_pictures.xrays.0', top/'ap.png'), 'lat': ('', 'check_pictures.xrays.1', top/'lat.png'),
        'weights': (f'--weights {run}', 'check_pictures.weights', run),
        'geometry': (f'--geometry {top/"other.json"}', 'check_pictures.geometry', top/'other.json'),
        'page': (f'-o {top/"check.html"}', 'save_check.path', top/'check.html'),
        'as_json': ('--json', 'stdout', lambda text: text.strip().startswith('{'))})
    tables['fetch'] = (['fetch', 'lidc-idri', '-o', out], dict(data__fetch__fetch=Arrived), {
        'dataset': ('', 'fetch.name', 'lidc-idri'), 'out': ('', 'fetch.folder', out),
        'accept_licence': ('--accept-licence', 'fetch.accept_licence', True),
        'patients': ('--patients 3', 'fetch.patients', 3),
        'server': ('--server http://127.0.0.1/v1', 'fetch.server', 'http://127.0.0.1/v1')})
    place = either('interpolate', 'thin_slices', 'interpolate')
    made = place.split('__')[-1]
    tables['interpolate'] = (['interpolate', ct, '-o', out], dict(
        data__dicom__read_ct=read, interpolate__load_net=lambda *a, **kw: 'net', interpolate__covered=None,
        interpolate__save_slices=Arrived, **own) | {place: lambda *a, **kw: ('result', 'apart')}, {
        'thick': ('', 'read_ct.path', ct), 'out': ('', 'save_slices.folder', staged_out),
        'spacing': ('--spacing 2', f'{made}.spacing', 2.), 'method': ('--method linear', f'{made}.method', 'linear'),
        'consistency': ('--no-consistency', f'{made}.consistency', False),
        'thickness': ('--thickness 30', f'{made}.thickness', 30.),
        'weights': [(f'--weights {run}', 'load_net.folder', run), (f'--weights {run}', f'{made}.net', 'net')],
        'vae': (f'--weights {run} --vae {cts}', 'load_net.vae', cts),
        'thin': (f'--thin {ct}', 'save_slices.truth', vol),
        'samples': (f'--weights {run} --samples 3', f'{made}.samples', 3),
        'adapt': (f'--weights {run} --adapt 2', f'{made}.adapt', 2.), 'model': own_file,
        'series': ('--series X', 'read_ct.series', 'X'),
        'overwrite': (again, 'save_slices.folder', staged_earlier)})
    tables['score'] = (['score', ct, ct], dict(data__dicom__read_ct=lambda p, *a, **kw: p,
                                               metrics__score=lambda *a, **kw: dict(x=1.)), {
        'pred': ('', 'score.pred', ct), 'truth': ('', 'score.truth', ct),
        'protocol': ('--protocol masked', 'score.protocol', 'masked'),
        'json': ('--json', 'stdout', lambda text: text.strip().startswith('{'))})
    tables['models'] = (['models'], {}, {'name': ('plane', 'stdout', lambda text: text.startswith('# Model card'))})
    return tables

def called(args, spies):
    "Run a command in this process: what the replaced functions were given, and what it printed."
    from typer.testing import CliRunner
    from xray_ct.cli import app
    with Spies(**spies) as s:
        result = CliRunner().invoke(app, [str(a) for a in args])
    if result.exception and not isinstance(result.exception, (Arrived, SystemExit)): s.seen['error'] = result.exception
    return s.seen | dict(stdout=result.output)

def test_commands(top):
    from typer.main import get_command
    from xray_ct import cli
    for room in getattr(cli, 'rooms', ()): importlib.import_module(room)
    tables, app = command_tables(top), cli.app
    for name, command in get_command(app).commands.items():
        if only not in name: continue
        if name not in tables: check(name, False, 'this command has no table'); continue
        args, spies, rows = tables[name]
        options = [p.name for p in command.params if p.name != 'help']
        for o in sorted(set(options) - set(rows)): check(f'{name} {o}', False, 'this option has no entry')
        for o in sorted(set(rows) - set(options) - {'adapt', 'model'}):
            check(f'{name} {o}', False, 'an entry for an option that there is not')
        plain = called(args, spies)
        for o in set(options) & set(rows):
            for more, place, want in rows[o] if isinstance(rows[o], list) else [rows[o]]:
                seen = called([*args, *more.split()], spies)
                got = value_of(seen, place)
                right = want(got) if callable(want) and got is not absent else got is want or got == want
                said = seen.get('error', seen['stdout'].strip()[-200:]) if got is absent else f'{place} is {got!r}'
                check(f'{name} {o}', bool(right), f'{more or "the argument"} does not arrive: {said}')
                usual = value_of(plain, place)
                same = usual is got or (not isinstance(got, np.ndarray) and usual == got)
                if more and '--overwrite' not in more:
                    check(f'{name} {o}', not same, f'{more} is what it is anyway: {got!r}')

def test_debug():
    "`--debug` shows the traceback."
    from xray_ct import cli
    def errors(*args):
        old, sys.argv = sys.argv, ['xray_ct', *args, 'score', 'nowhere', 'nowhere']
        with contextlib.redirect_stderr(io.StringIO()) as text:
            try: cli.main()
            except SystemExit: pass
            finally: sys.argv = old
        return text.getvalue()
    check('--debug', 'Traceback' in errors('--debug') and 'Traceback' not in errors(), 'shows no traceback')

# ---------------------------------------------------------------- what a config leads to
def digest(x):
    "Anything as a short text that is equal where it is equal bit for bit."
    if torch.is_tensor(x):
        flat = x.detach().contiguous().cpu()
        raw = (flat.float() if flat.dtype == torch.bfloat16 else flat).numpy().tobytes()
        return f'{tuple(x.shape)} {hashlib.sha1(raw).hexdigest()[:12]}'
    if isinstance(x, dict): return {str(k): digest(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)): return [digest(v) for v in x]
    return repr(x)

class Operations(TorchDispatchMode):
    "Which operations ran, on which shapes: recomputation, slabs and windows show here."
    def __init__(self): super().__init__(); self.seen = Counter()
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.seen[f'{func} {tuple(out.shape) if torch.is_tensor(out) else ""}'] += 1
        return out

def randn(name, *shape): return torch.randn(*shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))

def filled(model):
    "Weights that depend on their names alone: layers that begin at zero hide what they would do."
    with torch.no_grad():
        for name, p in model.named_parameters(): p.copy_(.15*randn(name, *p.shape) + (p.dim() == 1 and 'norm' in name))
    return model

def geometry(**changes):
    from xray_ct.projector import Geometry
    return Geometry.for_field(160., 16, 16, sdd=600., sid=450.).replace(**changes)

REFUSED = 'refused'
small = dict(encoder_width=8, encoder_levels=2, widths=(8, 8), down_blocks=(0, 1), up_blocks=(1,))
tokens = dict(encoder_width=8, encoder_levels=2, dim=48, heads=2, token_budget=64, widths=(8, 8),
              down_blocks=(0, 1), up_blocks=(0,), cnn_widths=(8, 16))
bases = dict(   # kind → fields of its smallest sensible config
    direct=small, hybrid=tokens, thin=dict(widths=(8, 8), blocks=1, detail=8),
    cascade=dict(tokens, backbone='vit', vector_width=16, sample_steps=3),
    progressive=dict(channels=(8, 6), rdbs=(1, 1), growth=(4, 4), layers=(1, 1), coarsest=8, encoder_width=8,
                     encoder_levels=2, lift_channels=4),
    latent=dict(channels=(8, 16), head_channels=8, sample_steps=2, vae=dict(window=(16, 32, 32), overlap=8)),
    peer=dict(channels=(4, 4, 8), layers=(1, 1), width=4))
xray = {   # field → its other value, and what else must be said for it to matter
    'geometry': (geometry(sid=400.).to_dict(), {}), 'encoder_width': (16, {}), 'encoder_levels': (3, {}),
    'encoder_blocks': (2, {}), 'vit_layers': (1, {}), 'lift_channels': (6, {}), 'work_stride': (1, {}),
    'base': ('mean', {}), 'residual_steps': (3, {}), 'residual_lambda': (.3, {}), 'expect_outside': (False, {}),
    'xray_offset': (1., {}), 'xray_scale': (1., {}), 'kev': (80., {}), 'use_physics_loss': (True, {})}
implicit = dict(architecture='implicit', width=8)
fine = {'fine': (4, {}), 'fine_layers': (1, dict(fine=4)), 'slab': (8, dict(fine=4)), 'grown': (2, {})}
depth = {'use_depth_lifting': (False, {}), 'use_depth_priors': (True, {}), 'backbone': (REFUSED, 'none such')}
sizes = {'widths': ((16, 8), {}), 'down_blocks': ((1, 1), {}), 'up_blocks': ((0,), {})}
hybrid = {'dim': (96, {}), 'heads': (4, {}), 'token_budget': (8, {}), 'num_attn_blocks': (1, {}),
          'num_ffn_blocks': (3, {}), 'use_xray_tokens': (False, {}), 'use_cnn_branch': (True, {}),
          'use_learnable_priors': (True, {}), 'use_cascaded_attn': (True, {}), 'use_multi_scale': (True, {}),
          'use_hierarchical_cond': (True, {}), 'use_depth_weights': (True, {}),
          'cnn_widths': ((8, 8), dict(use_cnn_branch=True)), 'cnn_expand': (3, dict(use_cnn_branch=True)),
          'boundary_weight': (.5, dict(use_learnable_priors=True)),
          'backbone': ('vit', {}), 'widths': ((8, 16), {}), 'up_blocks': ((1,), {})}

def stage_fields():
    "A stage of a cascade, and one that follows another."
    from xray_ct.models.hybrid import HybridConfig
    own = lambda **kw: dict(kind='hybrid', model=HybridConfig(geometry=geometry(
        vol_shape=(8,)*3, spacing=(20.,)*3).to_dict(), **{**tokens, **kw}).to_dict())
    after = dict(base='previous', previous=own())
    return {**xray, **{k: v for k, v in depth.items() if k != 'backbone'}, **sizes, **hybrid,
        'backbone': ('hybrid', {}), 'num_ffn_blocks': (3, dict(backbone='hybrid')),
        'work_stride': (4, dict(widths=(8, 8))), 'fine': (REFUSED, 4), 'fine_layers': (REFUSED, dict(fine=4)),
        'grown': (REFUSED, 2), 'slab': (REFUSED, 8), 'previous': (own(dim=96), after), 'share_encoder': (False, after),
        'prediction': ('v', {}), 'schedule': ('linear', {}), 'zero_terminal_snr': (True, {}),
        'min_snr_gamma': (5., {}), 'vector_width': (8, {}), 'augment': (.3, after), 'level': (.02, after),
        'blend': (.5, after), 'sample_steps': (2, {}), 'eta': (.5, {}), 'consistent_steps': (1, {}), 'samples': (2, {}),
        'joint': (True, after), 'checkpointing': (True, {})}

def model_fields():
    vae = dict(window=(16, 32, 32), overlap=8)
    return dict(
        direct={**xray, **fine, **depth, **sizes}, hybrid={**xray, **fine, **depth, **sizes, **hybrid},
        cascade=stage_fields(),
        progressive={**xray, 'channels': ((8, 8), {}), 'rdbs': ((1, 2), {}), 'growth': ((4, 6), {}),
                     'layers': ((1, 2), {}), 'coarsest': (16, {}), 'refine': (4, {}), 'supervision': (.9, {}),
                     'slab': (8, {}), 'checkpoint': (True, {}), 'base': ('none', {}),
                     'work_stride': (1, {})},
        peer={**{k: xray[k] for k in ('xray_offset', 'xray_scale', 'base')}, 'use_physics_loss': (True, {}),
              'geometry': (geometry(sid=400.).to_dict(), implicit), 'architecture': ('implicit', {}),
              'channels': ((4, 8, 8), {}), 'layers': ((1, 2), {}), 'width': (8, {}), 'points': (4, implicit)},
        thin={'widths': ((8, 16), {}), 'blocks': (2, {}), 'detail': (16, {}), 'consistent': (False, {})},
        latent={'vae': (dict(vae, latent_channels=3), {}), 'channels': ((8, 24), {}), 'blocks': (2, {}),
                'attention': ((False, True), {}), 'head_channels': (4, {}), 'groups': (4, {}), 'prediction': ('x0', {}),
                'schedule': ('linear', {}), 'betas': ((1e-3, 1e-2), dict(schedule='linear')),
                'zero_terminal_snr': (True, {}), 'min_snr_gamma': (0., {}), 'sample_steps': (3, {}), 'eta': (.5, {})})

def config_of(kind, **changes):
    from xray_ct.training import models
    preset = models[kind][0]('tiny', None if kind in ('thin', 'latent') else geometry())
    return replace(preset, **{**bases[kind], **changes})

def model_of(kind, config):
    "The model, with a base where it has one."
    from xray_ct.models.base import Ridge
    from xray_ct.training import models
    torch.manual_seed(0)
    model = filled(models[kind][1](config))
    root = getattr(model, 'root', model)
    base = getattr(root.config, 'base', 'none')
    if base == 'none': return model
    g = root.geometry
    x, y = 3 + randn('x', 3, len(g.views), *g.det_shape), .3*randn('y', 3, 1, *g.vol_shape)
    beyond = .2*randn('beyond', 3, len(g.views), 8, 8)
    root.set_base(y[0] if base == 'mean' else Ridge.fit(x, y, lam=.1, stride=root.config.work_stride, beyond=beyond))
    return model

def batch_of(kind, model):
    "One batch of two: inputs, target, X-rays."
    if kind in ('thin', 'latent'):
        from xray_ct.slab import slab_operators, slice_places
        at = torch.arange(8.).double(), torch.arange(4).double()*2 + .5
        ops, places = slab_operators(*at, 2.).expand(2, -1, -1, -1), slice_places(*at, 2.).expand(2, -1, -1)
        thick, thin = .3*randn('thick', 2, 1, 4, 16, 16), .3*randn('thin', 2, 1, 8, 16, 16)
        return (thick, ops.float(), places.float()), thin, None
    g = model.geometry
    x = 3 + randn('xrays', 2, len(g.views), *g.det_shape)
    return (x, torch.tensor([0, -1])), .3*randn('target', 2, 1, *g.vol_shape), x

def seen_of_model(kind, config):
    "What a config leads to: weights, a prediction, a training step with its losses, and the operations of both."
    from xray_ct.training import RunConfig, criterion
    model = model_of(kind, config)
    inputs, target, x = batch_of(kind, model)
    found = dict(weights={k: tuple(v.shape) for k, v in model.state_dict().items()})
    with Operations() as ops:
        with torch.no_grad(): found['prediction'] = digest(model.eval()(*inputs))
        torch.manual_seed(1)
        out = model.train()(*inputs, *[target]*model.needs_target)
        found['output'] = digest(out)
        loss = criterion(RunConfig(model=kind, epochs=1), model)(out, target, x)
        penalty = model.take_penalty() if hasattr(model, 'take_penalty') else None
        found['loss'], found['penalty'] = digest(loss), digest(penalty)
        (loss if penalty is None else loss + penalty).backward()
    learns = [n for n, p in model.named_parameters() if p.grad is not None]
    return found | dict(operations=dict(ops.seen), learns=learns)

def differs(a, b): return [k for k in a if a[k] != b.get(k)]

def test_fields(where, names, rows, seen):
    "Each field changed alone: `seen(changes)` must differ from `seen(context)`."
    from xray_ct.files import InputError
    known = {}
    for n in sorted(set(names) - set(rows)): check(f'{where}.{n}', False, 'this field has no entry')
    for n in sorted(set(rows) - set(names)): check(f'{where}.{n}', False, 'an entry for a field that there is not')
    for n in [n for n in names if n in rows and only in f'{where}.{n}']:
        value, context = rows[n]
        try:
            if value is REFUSED:
                try: seen(**(context if isinstance(context, dict) else {n: context}))
                except InputError: check(f'{where}.{n}', True, '')
                else: check(f'{where}.{n}', False, 'is taken, and was to be refused')
                continue
            key = repr(context)
            if not known: check(where, not differs(seen(**context), seen(**context)), 'the same config twice differs')
            if key not in known: known[key] = seen(**context)
            changed = differs(known[key], seen(**{**context, n: value}))
            check(f'{where}.{n}', changed, f'{n}={str(value)[:60]} changes nothing')
        except Exception as e: check(f'{where}.{n}', False, f'{type(e).__name__}: {str(e)[:200]}')

def test_models():
    for kind, rows in model_fields().items():
        if only and only not in kind and not any(only in f'{kind}.{f}' for f in rows): continue
        # a peer's own energy is what consistency takes: `test_energy`
        names = [f.name for f in fields(config_of(kind)) if (kind, f.name) != ('peer', 'kev')]
        test_fields(kind, names, rows, lambda **kw: seen_of_model(kind, config_of(kind, **kw)))

def test_case_arrives():
    "What a ridge base expects outside the field leaves a training case's own pictures out, in training and prediction."
    from xray_ct.models.base import Ridge
    kept = Ridge.expected_outside
    for kind in ('direct', 'hybrid', 'cascade', 'progressive'):
        if only not in f'{kind}.forward.case': continue
        found = []
        def told(self, xrays, case=None): found.append(case); return kept(self, xrays, case)
        model = model_of(kind, config_of(kind, **dict(consistent_steps=1) if kind == 'cascade' else {}))
        inputs, target, _ = batch_of(kind, model)
        Ridge.expected_outside = told
        try:
            with torch.no_grad(): model.eval()(*inputs); model.train()(*inputs, *[target]*model.needs_target)
        finally: Ridge.expected_outside = kept
        arrived = len(found) > 1 and all(c is inputs[1] for c in found)
        check(f'{kind}.forward.case', arrived, 'is lost before the outside')

def test_vae():
    from xray_ct.blocks.vae import MaisiVAE, VAEConfig
    wide = dict(channels=(8, 16), blocks=(1, 1), window=(16, 16, 16), overlap=4)
    hu = 300*randn('hu', 1, 1, 21, 16, 24)
    def seen(**kw):
        torch.manual_seed(0)
        vae = filled(MaisiVAE(VAEConfig(**{**wide, **kw}))).eval()
        vae.set_splits(vae.config.splits)
        with torch.no_grad(), Operations() as ops: z = vae.encode(hu); back = vae.decode(z, hu.shape[2:])
        return dict(z=digest(z), back=digest(back), operations=dict(ops.seen))
    rows = {'channels': ((8, 24), {}), 'blocks': ((1, 2), {}), 'groups': (4, {}), 'latent_channels': (3, {}),
            'levels': (3, {}), 'splits': (2, {}), 'split_axis': (1, dict(splits=2)), 'window': ((16, 16, 24), {}),
            'overlap': (8, {})}
    test_fields('VAEConfig', [f.name for f in fields(VAEConfig)], rows, seen)

def test_geometry():
    from xray_ct.data.phantom import thorax
    from xray_ct.projector import Geometry, Projector, render
    vol = thorax(1, size=16, spacing=12.)
    def seen(**kw):
        plain = dict(vol_shape=(6, 7, 8), spacing=(9., 10., 11.), det_shape=(12, 13), pixel=(8., 9.),
                     sdd=700., sid=500.)
        g = Geometry(**{**plain, **kw})
        x = randn('vol', 1, 1, *g.vol_shape)
        return dict(lines=digest(Projector(g)(x)), places=digest([g.detector_coords(v) for v in g.views]),
                    pictures=digest(render(vol, g)))
    rows = {'vol_shape': ((6, 7, 9), {}), 'spacing': ((9., 10., 12.), {}), 'det_shape': ((12, 14), {}),
            'pixel': ((8., 10.), {}), 'sdd': (800., {}), 'sid': (450., {}), 'views': (('pa', 'lao30'), {}),
            'mode': ('parallel', {}), 'isocenter': ((5., 0, 0), {})}
    test_fields('Geometry', [f.name for f in fields(Geometry)], rows, seen)

# ---------------------------------------------------------------- data and runs
def quiet(): return contextlib.redirect_stdout(io.StringIO())

def test_cohorts(cts, top):
    from xray_ct.data.cohort import Cohort, CohortConfig
    from xray_ct.data.pairs import PairCohort, PairConfig
    def seen(**kw):
        c = CohortConfig(**{**dict(size=16, spacing=20., det=16), **kw})
        cohort = Cohort.prepare(cts, c, top/'cache')
        moved, still = cohort.dataset('train', augment=True, seed=1, passes=6), cohort.dataset('train')
        return dict(items=digest([list(moved[i]) for i in range(min(12, len(moved)))]), still=digest(list(still[0])),
                    geometry=digest(c.geometry().to_dict()), patients={k: cohort.patients(k) for k in cohort.parts})
    pictures = dict(xrays='paired')
    rows = {'size': (8, {}), 'spacing': (15., {}), 'xrays': ('grid', {}), 'views': (('pa', 'lat'), {}),
            'sdd': (1900., {}), 'sid': (1400., {}), 'det': (24, {}), 'kev': (80., {}), 'max_patients': (4, {}),
            'rotate': (0., {}), 'scale': (0., {}), 'shift': (0., {}), 'flip': (True, {}), 'gain': (.2, {}),
            'photons': (1e4, {}), 'jitter': (.02, {}), 'turn': (9., {}), 'spectrum': (.9, {}),
            'scatter': (2., dict(photons=1e5)), 'exposure': (2., dict(photons=1e4)), 'edges': (2., {}),
            'curve': (1., {}), 'blades': (.3, {}), 'marker': (.9, dict(det=48)),
            'paired_white': (3., pictures), 'vertical_flip': (True, pictures)}
    test_fields('CohortConfig', [f.name for f in fields(CohortConfig)], rows, seen)
    def pairs(**kw):
        cohort = PairCohort.prepare(cts, PairConfig(**{**dict(slices=8, crop=12), **kw}), top/'cache')
        moved = cohort.dataset('train', augment=True, seed=1)
        return dict(items=digest([list(moved[i]) for i in range(min(3, len(moved)))]),
                    patients={k: cohort.patients(k) for k in cohort.parts})
    rows = {'ratios': ((4.,), {}), 'slices': (12, {}), 'crop': (8, {}), 'flip': (False, {}), 'max_patients': (4, {})}
    test_fields('PairConfig', [f.name for f in fields(PairConfig)], rows, pairs)

def write_patients(folder):
    "Six phantoms with pictures beside them, as `paired` reads them."
    from PIL import Image
    from xray_ct.data.phantom import write_cohort
    for i, path in enumerate(write_cohort(folder, 6, size=16, spacing=20.)):
        for view in ('ap', 'lat'):
            img = (255*np.random.default_rng(i).random((16, 16))).astype(np.uint8)
            Image.fromarray(img).save(folder/f'{path.name.split(".")[0]}_{view}_drr.png')

def test_runs(cts, top):
    "Trainings of seconds, which must end differently."
    from fastai.basics import Callback
    from safetensors.torch import load_file
    from xray_ct import training as T
    from xray_ct.data.cohort import CohortConfig
    cohort = dict(size=16, spacing=20., xrays='grid')
    plain = dict(model='direct', epochs=3, batch_size=2, figures=False, cohort=CohortConfig(**cohort), settings=small)
    count = iter(range(10**6))
    def seen(**kw):
        run = top/f'fit{next(count)}'
        spied = dict(training__checkpoint_blocks=None, training__tracker=lambda *a: Callback(),
                     training__training_device=lambda asked: torch.device('cpu'))
        with Spies(**spied) as s, Spies(data__cohort__dataloaders_of_Cohort=T.Cohort.dataloaders) as d, quiet():
            try: T.fit(T.RunConfig(**{**plain, **kw}), cts, run, top/'cache')
            except Arrived: pass
        log = [line.split(',') for line in (run/'log.csv').read_text().splitlines()]
        keep = [i for i, name in enumerate(log[0]) if 'time' not in name and 'seconds' not in name]
        return dict(weights=digest(load_file(run/'model.safetensors')), log=[[row[i] for i in keep] for row in log],
                    files=sorted(p.relative_to(run).as_posix() for p in run.rglob('*') if p.is_file()),
                    calls=repr({k: v.get('patterns', v.get('asked', True)) for k, v in s.seen.items()}),
                    workers=d.seen['dataloaders']['num_workers'])
    rows = {'preset': ('base', {}), 'epochs': (2, {}), 'minutes': None, 'passes': (2, {}),
            'batch_size': (4, {}), 'accumulate': (2, dict(passes=2)), 'checkpointing': ('head', {}), 'lr': (1e-2, {}),
            'warmup': (.5, {}), 'weight_decay': (.5, {}), 'clip': (1e-3, {}), 'ema': (.2, {}), 'seed': (7, {}),
            'base_copies': (1, {}),
            'l1': (0., {}), 'mse': (0., {}), 'ssim': (1., {}), 'projection': (1., {}), 'num_workers': (1, {}),
            'figures': (True, {}), 'track': ('tensorboard', {}), 'keep': (0, {}), 'precision': ('bf16', {}),
            'device': ('cpu', {}), 'cohort': (CohortConfig(**cohort, rotate=0.), {}),
            'settings': ({**small, 'lift_channels': 6}, {}),
            'model': ('hybrid', dict(settings=dict(encoder_width=8, encoder_levels=2))),
            'previous': None, 'autoencoder': None, 'autoencoder_steps': None, 'shard': None}   # below
    names = [f.name for f in fields(T.RunConfig)]
    test_fields('RunConfig', [n for n in names if rows.get(n, 1)], {k: v for k, v in rows.items() if v}, seen)
    if only and only not in 'RunConfig.previous RunConfig.autoencoder RunConfig.shard RunConfig.seed': return
    clock = T.Schedule(T.RunConfig(minutes=2.))
    clock.start = time.monotonic() - 60
    done_share = clock.share()
    check('RunConfig.minutes', .49 < done_share < .6, f'after one of two minutes the run is {done_share:.2f} done')
    before = top/'fit0'
    stage = T.RunConfig(model='cascade', epochs=1, cohort=plain['cohort'], previous=str(before))
    check('RunConfig.previous', T.model_config(stage).previous['kind'] == 'direct', 'is not what the stage follows')
    for name, value, parameter in (('autoencoder', str(top/'vae'), 'path'), ('autoencoder_steps', 7, 'steps')):
        found = made_vae(cts, top, **{name: value})
        given = found.get(parameter)
        check(f'RunConfig.{name}', str(given) == str(value), f'the autoencoder gets {given}')
    with Spies(training__sharded=Arrived, training__world=lambda: 2, training__shared=lambda dls: dls) as s, quiet():
        run_cohort = T.Cohort.prepare(cts, plain['cohort'], top/'cache')
        config = T.RunConfig(**{**plain, 'shard': True})
        parts = learner_parts(config, run_cohort, top/'shard')
        with contextlib.suppress(Arrived): T.learner(config, run_cohort, *parts)
    check('RunConfig.shard', 'sharded' in s.seen, 'does not shard the model')

    config = T.RunConfig(**{**plain, 'seed': 7})
    with Spies(training__Reseed=Arrived) as s, quiet(), contextlib.suppress(Arrived):
        T.learner(config, run_cohort, *learner_parts(config, run_cohort, top/'seed'))
    check('RunConfig.seed', value_of(s.seen, 'Reseed.seed') == 7, 'the order of the batches does not follow it')

def learner_parts(config, cohort, run):
    from xray_ct.training import build
    run.mkdir()
    model, floors = build(config, cohort)
    return model, run, floors

def made_vae(cts, top, **kw):
    "What `fit_vae` is given in a run of latent diffusion."
    from xray_ct import training as T
    from xray_ct.data.pairs import PairCohort, PairConfig
    pairs = PairConfig(slices=8, crop=16)
    with Spies(models__latent__fit_vae_of_LatentModel=None) as s, quiet():
        T.build(T.RunConfig(model='latent', epochs=1, cohort=pairs, **kw), PairCohort.prepare(cts, pairs, top/'cache'))
    return s.seen['fit_vae']

# a weight that a kind of model takes no notice of, and does not refuse either: to be wired, or refused
ignored = set()   # (kind, weight); before the registry there were nine

def test_losses():
    "The losses' weights of a run, for every kind of model."
    from xray_ct.files import InputError
    from xray_ct.models.saved import models
    from xray_ct.training import RunConfig, criterion
    for kind in (k for k in models if models[k].trains):
        if only and only not in f'losses.{kind}': continue
        model = model_of(kind, config_of(kind))
        inputs, target, x = batch_of(kind, model)
        def loss(**kw):
            torch.manual_seed(1)
            out = model.train()(*inputs, *[target]*model.needs_target)
            return digest(criterion(RunConfig(model=kind, epochs=1, **kw), model)(out, target, x))
        usual = loss()
        for name in ('l1', 'mse', 'ssim', 'projection'):
            try: counts = loss(**{name: .5}) != usual
            except InputError: counts = True
            where = f'losses.{kind}.{name}'
            if (kind, name) in ignored:
                check(where, not counts, 'is listed as ignored and counts, or is refused: remove it from the list')
                print(f'finding: {name} changes nothing in a run of {kind}')
            else: check(where, counts, 'changes nothing')

def test_energy():
    "The energy of the cohort's X-rays is that of the model and of its losses."
    from xray_ct.data.cohort import CohortConfig
    from xray_ct.training import RunConfig, criterion, model_config
    for kind in ('direct', 'hybrid', 'cascade', 'progressive', 'peer'):
        if only not in f'{kind}.kev': continue
        config = RunConfig(model=kind, epochs=1, projection=1., cohort=CohortConfig(kev=80.))
        check(f'{kind}.kev', model_config(config).kev == 80, 'the model does not get the energy of its cohort')
        loss = criterion(config, model_of(kind, config_of(kind)))
        check(f'{kind}.kev', loss.project.kev == 80, 'the projection loss does not get the energy of the cohort')

def main():
    start = time.process_time()
    with tempfile.TemporaryDirectory(prefix='xray_ct_arrives_') as folder:
        top = Path(folder).resolve()
        os.chdir(top)
        cts = top/'patients'
        with quiet(): write_patients(cts)
        test_commands(top)
        if not only: test_debug()
        parts = dict(Geometry=test_geometry, VAEConfig=test_vae, models=test_models, cases=test_case_arrives,
                     losses=test_losses, kev=test_energy)
        for test in parts.values(): test()
        test_cohorts(cts, top)
        test_runs(cts, top)
    print(f'{sum(done.values())} checks, {len(problems)} failed, {time.process_time() - start:.0f} s of processor time')
    return int(bool(problems))

if __name__ == '__main__': sys.exit(main())
