"""Pictures of one phantom by the packages themselves, in the geometries that `xray_ct.conventions` hands them.

    python tests/conventions.py             # compares with whichever of the packages are installed
    VENV/bin/python tests/conventions.py    # in an environment that has them

pip install diffdrr nanodrr itk-rtk astra-toolbox (several GB: into an environment of their own). ASTRA has three
dimensions on a GPU only, so on a CPU its middle row is compared in two. A difference above 1 % is a failure.
Ends with 77 where none of the packages is there."""
import sys
here = sys.path.pop(0)  # `types.py` beside this file would hide the standard library's
sys.path.insert(0, here.removesuffix('/tests') if here.endswith('/tests') else '.')
from importlib import import_module
import numpy as np
import torch
from xray_ct.conventions import Geometry
from xray_ct.projector import Projector

torch.set_num_threads(1)
views = ('ap', 'lat', 'pa', 'rlat', 30.)
g = Geometry((40, 48, 56), (4., 3.5, 3.), (70, 90), (5., 4.), 1500., 1150., views, isocenter=(12., -30., 45.))
bad, done = [], []

def phantom():
    "Smooth and lopsided along every axis: a body with an organ and a dense ball, (D, H, W), 1/mm."
    z, y, x = (((torch.arange(n) - (n - 1)/2)*s) for n, s in zip(g.vol_shape, g.spacing))
    z, y, x = z[:, None, None], y[None, :, None], x[None, None, :]
    soft = lambda r: torch.sigmoid((1 - r)*12)
    body = soft(((x - 5)/65)**2 + ((y + 4)/55)**2 + ((z - 3)/60)**2)
    ball = soft(((x - 30)/12)**2 + ((y + 20)/14)**2 + ((z + 25)/15)**2)
    organ = soft(((x + 25)/22)**2 + ((y - 12)/18)**2 + ((z - 20)/25)**2)
    return .02*body + .03*ball - .012*organ

mu = phantom()
ours = Projector(g)(mu[None, None])[0].numpy()

def compare(name, theirs, mine=ours):
    done.append(name)
    off = [float(np.linalg.norm(a - b)/np.linalg.norm(b)) for a, b in zip(theirs, mine)]
    print(f'{name}: ' + ', '.join(f'{v} {o:.2%}' for v, o in zip(views, off)))
    if not max(off) < .01: bad.append(name)

def with_affine(): # array (x, y, z) in RAS and its affine, for torchio
    a = mu.numpy().transpose(2, 1, 0)[::-1, ::-1, ::-1].copy() # W, H, D run to L, P, I
    spacing = np.array(g.spacing)[::-1]
    affine = np.diag([*spacing, 1.])
    center = np.array(g.isocenter)*(-1, -1, 1)
    affine[:3, 3] = center - spacing*(np.array(a.shape) - 1)/2
    return torch.from_numpy(a)[None], affine

def diffdrr():
    from diffdrr.data import read
    from diffdrr.drr import DRR
    from diffdrr.pose import RigidTransform
    from torchio import ScalarImage
    a, affine = with_affine()
    subject = read(ScalarImage(tensor=a, affine=affine), orientation=None, center_volume=False)
    subject.density.set_data(a)  # attenuation as it is, not by DiffDRR's conversion of HU
    pictures = []
    for arguments, pose in g.to_diffdrr():
        drr = DRR(subject, renderer='trilinear', **arguments)
        drr.density = a[0].float()
        pictures.append(drr(RigidTransform(torch.tensor(pose, dtype=torch.float32)[None]), n_points=600)[0, 0].numpy())
    compare('DiffDRR', pictures)

def nanodrr():
    Subject, DRR = import_module('nanodrr.data').Subject, import_module('nanodrr.drr').DRR
    from torchio import ScalarImage
    a, affine = with_affine()
    subject = Subject.from_images(ScalarImage(tensor=a, affine=affine), convert_to_mu=False)
    (k_inv, sdd, h, w), poses = g.to_nanodrr()
    t = lambda x: torch.tensor(x, dtype=torch.float32)
    drr = DRR(t(k_inv), t(sdd), h, w)
    compare('nanodrr', [drr(subject, t(p)[None], n_samples=600).detach()[0].sum(0).numpy() for p in poses])

def rtk():
    import itk
    from itk import RTK
    kind = itk.Image[itk.F, 3]
    a = mu.numpy().transpose(1, 0, 2)[::-1, ::-1].copy() # array [z][y][x]: to anterior, to the head, to the left
    volume = itk.image_from_array(a)
    spacing = [g.spacing[2], g.spacing[0], g.spacing[1]]
    volume.SetSpacing(spacing)
    volume.SetOrigin([-s*(n - 1)/2 for s, n in zip(spacing, a.shape[::-1])])
    pictures = []
    for p in g.to_rtk():
        geometry = RTK.ThreeDCircularProjectionGeometry.New()
        geometry.AddProjection(p['sid'], p['sdd'], p['gantry'])
        (w, h), (sw, sh) = p['size'], p['spacing']
        empty = itk.image_from_array(np.zeros((1, h, w), np.float32))
        empty.SetSpacing([sw, sh, 1.])
        empty.SetOrigin([-sw*(w - 1)/2, -sh*(h - 1)/2, 0.])
        project = RTK.JosephForwardProjectionImageFilter[kind, kind].New()
        project.SetInput(0, empty)
        project.SetInput(1, volume)
        project.SetGeometry(geometry)
        project.Update()
        x = itk.array_from_image(project.GetOutput())[0]
        pictures.append(x[::-1 if p['reverse_rows'] else 1, ::-1 if p['reverse_columns'] else 1])
    compare('RTK', pictures)

def astra():
    astra = import_module('astra')
    if astra.use_cuda():
        volume, projection = g.to_astra()
        vol, proj = astra.create_vol_geom(*volume), astra.create_proj_geom(*projection)
        key, sino = astra.create_sino3d_gpu(mu.numpy(), proj, vol)
        compare('ASTRA', sino.transpose(1, 0, 2))
        return astra.data3d.delete(key)
    flat = g.replace(vol_shape=(1, *g.vol_shape[1:]), spacing=(1., *g.spacing[1:]),
                     det_shape=(1, g.det_shape[1]), pixel=(1., g.pixel[1]))
    middle = mu[20]
    thick = flat.replace(vol_shape=(3, *flat.vol_shape[1:]), spacing=(50., *flat.spacing[1:]))
    mine = Projector(thick)(middle.expand(1, 1, 3, -1, -1))[0, :, 0].numpy()
    (H, W, D, *box), (_, _, n, rows) = flat.to_astra()
    # in two dimensions ASTRA's y runs against the rows of its array
    two = rows.reshape(-1, 4, 3)[:, :3, :2]*(1, -1)
    proj = astra.create_proj_geom('fanflat_vec', n, two.reshape(-1, 6))
    # its pixels are squares; ours are not, so the picture is refined until they are
    fine = torch.nn.functional.interpolate(middle[None, None], (H*7, W*6), mode='bilinear')[0, 0].numpy()
    square = astra.create_vol_geom(H*7, W*6, *box[:4])
    projector = astra.create_projector('line_fanflat', proj, square)
    _, sino = astra.create_sino(fine, projector)
    compare('ASTRA (two dimensions)', sino, mine)

for name, test in dict(diffdrr=diffdrr, nanodrr=nanodrr, itk=rtk, astra=astra).items():
    try: __import__(name)
    except ImportError:
        print(f'skipped: {name} is not installed')
        continue
    test()
if not done:
    print('skipped: none of diffdrr, nanodrr, itk-rtk and astra-toolbox is installed')
    sys.exit(77)
print(f'{len(done) - len(bad)} of {len(done)} agree to 1 %')
sys.exit(bool(bad))
