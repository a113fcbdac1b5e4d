"""The memory of a training step as `memory.vet` counts it, and as the process really takes it, for each kind of model.

    python tests/memory.py [NAME …]

Each step runs in a process of its own, in float32 on one core, after a small one that loads what is loaded once. What
is compared is the largest part of it in memory (Linux's VmHWM) less what there was before the network came; the count
is the peak and the workspace, which oneDNN always uses. They must agree within 10 %.
"""
import os, re, subprocess, sys, time

steps = dict(  # preset, voxels a side, batch, checkpointing
    direct=('tiny', 128, 1, False),
    hybrid=('tiny', 128, 1, False),
    cascade=('vit', 64, 1, False),
    progressive=('lean', 64, 2, False),
    checkpointed=('tiny', 128, 1, True),
)
kind_of = lambda name: 'direct' if name == 'checkpointed' else name

def step_of(name, size=None, batch=None): # a function that makes the model, inputs, loss
    import torch
    from xray_ct.losses import ReconstructionLoss
    from xray_ct.projector import Geometry
    from xray_ct.training import models
    preset, n, b, _ = steps[name]
    n, b, (make, cls) = size or n, batch or b, models[kind_of(name)]
    g = Geometry.for_field(320., n, n)
    config = make(preset, g, base='mean')
    x, y = torch.zeros(b, len(g.views), *g.det_shape), torch.zeros(b, 1, *g.vol_shape)
    if cls.needs_target: return lambda: cls(config), dict(xrays=x, target=y), lambda out: out[0].mean()
    return lambda: cls(config), dict(xrays=x), lambda out: ReconstructionLoss()(out, y)

def really(name):
    "Run in a child: prints the bytes of one real step."
    import torch
    from xray_ct.memory import checkpoint_blocks
    torch.set_num_threads(1)
    status = lambda key: 1024*int(re.search(key + r':\s*([0-9]+)', open('/proc/self/status').read())[1])
    def step(make, inputs, loss):
        model = make().train()
        if steps[name][3]: checkpoint_blocks(model, None)
        opt = torch.optim.Adam(model.parameters(), foreach=False)
        for p in model.parameters(): p.grad = torch.zeros_like(p)
        opt.step()
        for t in inputs.values(): t += 0                             # zeros take no memory until they are written
        out = model(**inputs)
        loss(out).backward()
        opt.step()
    step(*step_of(name, 64 if name == 'cascade' else 32, 1))
    before = status('VmRSS')
    parts = step_of(name)
    open('/proc/self/clear_refs', 'w').write('5')
    step(*parts)
    print(status('VmHWM') - before)

def held_by(name):
    "Bytes that a real step takes, in a process of its own; what is freed goes back at once."
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'MALLOC_MMAP_THRESHOLD_': '65536'}
    command = [sys.executable, __file__, '--really', name]
    return int(subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout)

def main(names):
    if sys.platform != 'linux':
        print('skipped: only Linux says what a process held at its highest')
        return 77
    from xray_ct.memory import vet
    failed = 0
    for name in names or steps:
        make, inputs, loss = step_of(name)
        v = vet(make, inputs, loss=loss, device='cpu', checkpointing=steps[name][3], advise=False)
        t = time.time()
        held, counted = held_by(name), v.peak + v.workspace
        print(f'{name:14} counted {v.peak/1e9:.3f} GB + {v.workspace/1e9:.3f} of copies; the process held '
              f'{held/1e9:.3f} GB ({held/counted - 1:+.1%}), {time.time() - t:.0f} s', flush=True)
        failed += abs(held/counted - 1) > .1
    return int(failed > 0)

if __name__ == '__main__':
    if sys.argv[1:2] == ['--really']: really(sys.argv[2])
    else: sys.exit(main(sys.argv[1:]))
