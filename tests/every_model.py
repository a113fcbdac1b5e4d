"""Every kind of model, trained by a minute's fraction and then used, each step in a process of its own by the command
line.

    python tests/every_model.py [KIND …]
    python tests/every_model.py [KIND …] --folder CTS --ct CT --minutes 1

A fresh process knows a model by its name alone: what another process had imported must not matter. Two minutes on
one core for tiny networks on phantoms. With a folder of real CTs, each kind's preset `tiny` is trained for the
minutes given, and reconstructs or interpolates the CT given, which should not be in the folder.
"""
import argparse, json, os, subprocess, sys, tempfile, time
from pathlib import Path

encoder = dict(encoder_width=8, encoder_levels=2, lift_channels=2, residual_steps=2)
unet = dict(encoder, widths='16', down_blocks='1', up_blocks='[]')
stage = dict(unet, vector_width=16, sample_steps=2)
progressive = dict(encoder, channels='8,4', rdbs='1,0', growth='4,0', layers='1,0', coarsest=8)
hybrid = dict(unet, dim=16, heads=2, num_attn_blocks=1, num_ffn_blocks=2)
x2ct = dict(channels='4,4,8', layers='1,1', width=4)
volumes = dict(direct=('direct', unet), hybrid=('hybrid', hybrid), stage1=('cascade', stage), stage2=('cascade', stage),
               progressive=('progressive', progressive), peer=('peer', x2ct))
slices = dict(thin=dict(widths='8,16', blocks=1, detail=8),
              latent=dict(channels='8,8', groups=4, head_channels=8, sample_steps=2, autoencoder_steps=2))

def xray_ct(*args, code=0):
    "Run a command in a process of its own; returns what it says."
    done = subprocess.run([sys.executable, '-c', 'from xray_ct.cli import main; main()', *map(str, args)],
                          capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == code, f'xray_ct {" ".join(map(str, args))}: exit code {done.returncode}\n{said[-3000:]}'
    return said

def settings(fields): return [a for k, v in fields.items() for a in ('--set', f'{k}={v}')]

def on_phantoms(d, cohort):
    "A cohort, a CT, its X-rays and its thick slices, small enough for a test."
    from xray_ct.data.phantom import write_cohort
    from xray_ct.slab import thicken
    from xray_ct.volume import Volume
    write_cohort(d/'cts', n=6, size=32, spacing=10.)
    (d/'ct.nii.gz').write_bytes(sorted((d/'cts').glob('*.nii.gz'))[0].read_bytes())
    thicken(Volume.load(d/'ct.nii.gz'), 20.).save(d/'thick.nii.gz')
    xray_ct('drr', d/'ct.nii.gz', '-o', d/'xrays', '--size', 32, '--field', 320)

def on_cts(d, cohort):
    "The same from real CTs, of any kind."
    from xray_ct.data.dicom import read_ct
    from xray_ct.slab import thicken
    xray_ct('drr', cohort.ct, '-o', d/'xrays')
    ct = read_ct(cohort.ct)
    ct.save(d/'ct.nii.gz')
    thicken(ct, 5.).save(d/'thick.nii.gz')

def trained(d, cohort, name, *options):
    "Train, and see that it was scored; seconds."
    command = 'train-slices' if name in slices else 'train'
    fields = slices[name] if name in slices else volumes[name][1]
    length = ['--minutes', cohort.minutes] if cohort.ct else ['--epochs', 1, *settings(fields)]
    xray_ct(command, cohort.folder or d/'cts', '-o', d/name, '--cache', d/f'cache-{command}', *options, *length)
    scores = json.loads((d/name/'metrics.json').read_text())
    assert scores['rows'] if name in volumes else scores

def check_volume(d, name, cohort):
    "Train, reconstruct, score, vet."
    kind, _ = volumes[name]
    size = (32 if name == 'stage2' else 16)*(2 if cohort.ct else 1)
    grid = '--size', size, '--spacing', 320/size, '--set', 'figures=false'
    grid += () if cohort.ct else ('--set', 'det=32')
    trained(d, cohort, name, '--model', kind, *grid, *(['--previous', d/'stage1'] if name == 'stage2' else []))
    xray_ct('reconstruct', d/'xrays/ap.dcm', d/'xrays/lat.dcm', '-o', d/f'{name}-ct', '--weights', d/name, '--truth',
            d/'ct.nii.gz')
    assert json.loads((d/f'{name}-ct/metrics.json').read_text())['scores']
    scores = json.loads(xray_ct('score', d/f'{name}-ct/ct.nii.gz', cohort.ct or d/'ct.nii.gz', '--json'))
    assert 10 < scores['psnr_3d_range2000'] < 60, scores
    assert 'fits' in xray_ct('vet', d/name)
    if name == 'direct':
        told = xray_ct('interpolate', d/'thick.nii.gz', '-o', d/'bad', '--weights', d/name, code=2)
        assert f'a {kind} model reads X-rays' in told and not (d/'bad').exists(), told
    return scores['psnr_3d_range2000']

def check_slices(d, kind, cohort):
    "Train, interpolate, score, vet."
    few = () if cohort.ct else ('--ratios', 2, '--set', 'slices=8', '--set', 'crop=16', '--set', 'passes=1')
    trained(d, cohort, kind, '--model', kind, *few)
    spacing = 1 if cohort.ct else 10
    xray_ct('interpolate', d/'thick.nii.gz', '-o', d/f'{kind}-ct', '--weights', d/kind, '--spacing', spacing, '--thin',
            d/'ct.nii.gz')
    assert json.loads((d/f'{kind}-ct/metrics.json').read_text())['baselines']
    scores = json.loads(xray_ct('score', d/f'{kind}-ct/ct.nii.gz', cohort.ct or d/'ct.nii.gz', '--json'))
    assert 15 < scores['psnr_3d_range2000'] < 60, scores
    assert 'fits' in xray_ct('vet', d/kind)
    if kind == 'thin':
        told = xray_ct('reconstruct', d/'xrays/ap.dcm', d/'xrays/lat.dcm', '-o', d/'bad', '--weights', d/kind, code=2)
        assert f'a {kind} model reads thick slices' in told and not (d/'bad').exists(), told
    return scores['psnr_3d_range2000']

def main():
    from xray_ct.models.saved import models
    os.environ['OMP_NUM_THREADS'] = '1'
    # a model that is added without a line here is found out
    known = {k for k in models if models[k].trains}
    assert known == {k for k, _ in volumes.values()} | set(slices), f'add {known} to this test'
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('kinds', nargs='*', metavar='KIND', help=', '.join([*volumes, *slices]))
    p.add_argument('--folder', type=Path, help='of CTs to train on; default: phantoms')
    p.add_argument('--ct', type=Path, help='to make X-rays and thick slices of')
    p.add_argument('--minutes', type=float, default=1., help='of training a kind, with a folder')
    cohort = p.parse_args()
    if bool(cohort.folder) != bool(cohort.ct): p.error('--folder and --ct belong together')
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        (on_cts if cohort.ct else on_phantoms)(d, cohort)
        for name in cohort.kinds or [*volumes, *slices]:
            start = time.time()
            psnr = (check_volume if name in volumes else check_slices)(d, name, cohort)
            print(f'{name:12} {time.time() - start:6.1f} s {psnr:6.2f} dB', flush=True)
        bad = '-o', d/'bad', '--model', 'x2ct', '--epochs', 1
        for command in (('train', cohort.folder or d/'cts', *bad), ('vet', 'x2ct:tiny')):
            assert "model 'x2ct' is unknown. Choose from direct" in xray_ct(*command, code=2)

if __name__ == '__main__': main()
