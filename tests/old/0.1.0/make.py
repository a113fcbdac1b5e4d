"""Every kind of model, trained by 0.1.0 for three epochs, once to the end and once stopped within the second epoch. 

    PYTHONPATH=CHECKOUT_OF_9d10748 python make.py FOLDER
"""
import os, signal, sys
from dataclasses import replace
from pathlib import Path
import torch
from safetensors.torch import save_file
import xray_ct.training as t
from xray_ct.data.cohort import Cohort, CohortConfig
from xray_ct.data.pairs import PairCohort, PairConfig
from xray_ct.data.phantom import write_cohort
from xray_ct.training import RunConfig, fit, models
from fastai.basics import Callback
torch.set_num_threads(1)
top = Path(sys.argv[1]); top.mkdir(parents=True, exist_ok=True); os.chdir(top)
if not Path('cts').exists(): write_cohort('cts', n=5, size=16, spacing=20.)
common = dict(epochs=3, batch_size=2, figures=False, keep=0)
xray = dict(encoder_width=4, encoder_levels=1, lift_channels=2, residual_steps=2)
unet = dict(widths=(8,), down_blocks=(1,), up_blocks=())
cube = CohortConfig(size=16, spacing=20., det=16)
pairs = PairConfig(ratios=(2.,), slices=8, crop=12)
stage = RunConfig(model='cascade', **common, cohort=cube, settings=dict(xray, **unet, vector_width=16, sample_steps=2))
vae = dict(channels=[4, 4], blocks=[1, 1], groups=4, latent_channels=2, window=[16, 16, 16], overlap=4)
configs = dict(
    direct=RunConfig(model='direct', **common, cohort=cube, projection=.1,
                     settings=dict(xray, **unet, fine=2, fine_layers=1)),
    direct_mean=RunConfig(model='direct', **common, cohort=cube,
                          settings=dict(xray, **unet, base='mean', use_depth_priors=True)),
    hybrid=RunConfig(model='hybrid', **common, cohort=cube,
                     settings=dict(xray, **unet, dim=8, heads=2, num_attn_blocks=1, num_ffn_blocks=2, token_budget=64,
                                   use_xray_tokens=False, use_learnable_priors=True)),
    cascade1=stage,
    cascade2=replace(stage, cohort=replace(cube, size=32, spacing=10.), previous='cascade1'),
    progressive=RunConfig(model='progressive', **common, cohort=cube,
                          settings=dict(encoder_width=4, encoder_levels=1, lift_channels=2, residual_steps=2,
                                        channels=(8, 4), rdbs=(1, 0), growth=(4, 0), layers=(1, 0), coarsest=8)),
    thin=RunConfig(model='thin', **common, passes=2, cohort=pairs, settings=dict(widths=(4, 8), blocks=1, detail=4)),
    latent=RunConfig(model='latent', **common, passes=2, cohort=pairs, autoencoder_steps=3,
                     settings=dict(channels=(4, 4), groups=2, head_channels=4, sample_steps=2, vae=vae)))

class Ask(Callback):
    "SIGTERM in the first step of the second epoch."
    order = 92
    def before_batch(self):
        if self.training and self.epoch == 1: os.kill(os.getpid(), signal.SIGTERM)

def predict(name, config):
    "On the test patient, or the middle of the test series, by the first process's numbers: seeds are the models' own."
    net = models[config.model][1].load(name)
    if config.model in ('thin', 'latent'):
        thick, ops, places, _ = (x[None] for x in PairCohort.prepare('cts', config.cohort, 'cache').dataset('test')[0])
        given = dict(thick=thick, operators=ops, places=places)
    else: given = dict(xrays=Cohort.prepare('cts', config.cohort, 'cache').dataset('test')[0][0][None])
    with torch.no_grad(): return {**given, 'prediction': net.eval()(**given)}

plain = t.learner
for name, config in configs.items():
    fit(config, 'cts', name, 'cache')
    save_file({k: v.contiguous() for k, v in predict(name, config).items()}, f'{name}/expected.safetensors')
    t.learner = lambda *a: plain(*a).add_cb(Ask())
    try: fit(config, 'cts', f'{name}-stopped', 'cache')
    except SystemExit: pass
    t.learner = plain
    print(name, sum(p.numel() for p in models[config.model][1].load(name).parameters()))
