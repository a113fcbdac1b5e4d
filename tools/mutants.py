"""The faults that `tools/mutate.py` plants: (the text of an exported cell, what stands there instead, *who catches it).

A catcher is the name of a notebook without its number, or of a script in tests/; without one, the notebook in which
the text stands. A row may end in 'why: …', which explains a fault that nothing catches.
"""

geometry = [
    ("a = math.radians(view_angle(view))", "a = -math.radians(view_angle(view))", 'geometry', 'projector'),
    ("-1)*float(oblique[2])", "-1)*float(oblique[2])/2"),
    ("abs(col[1]*h + col[2]*w)*scale, field/2*scale)", "abs(col[1]*h + col[2]*w)*scale)", 'geometry', 'projector'),
    ("u = across*scale/self.pixel[1]", "u = across*scale/self.pixel[0]", 'geometry', 'projector'),
    ("v = z*scale/self.pixel[0]", "v = z*scale/self.pixel[1]", 'geometry', 'projector'),
    ("sum(abs(b)*e for b, e in zip(view_axes(view)[0], self.extent))", "max(self.extent)"),
    ("'LL': 'lat', 'LAT'", "'LL': 'rlat', 'LAT'"),
    ("table[0] - field/2", "table[0] + field/2"),
    ("'pixel', (cover/max(shape),)*2", "'pixel', (cover/min(shape),)*2"),
]

projector = [
    ("(g.sid + t)/g.sdd if self.cone", "(g.sid - t)/g.sdd if self.cone"),
    ("place = lambda p, a: (scale[:, None]*p - offset[a])/s[a]", "place = lambda p, a: (scale[:, None]*p)/s[a]"),
    ("slope2 = (y[:, None]**2 + x**2)/g.sdd**2", "slope2 = (x**2 + 0*y[:, None])/g.sdd**2"),
    ("self.length = s[self.axis]*(1 + slope2).sqrt()", "self.length = s[0]*(1 + slope2).sqrt()"),
    ("ray[k].abs()/(1 + self.halves)", "ray[k].abs()"),
    ("unit = lambda p, a: ((p - offset[a])/s[a]", "unit = lambda p, a: ((p - offset[a])/s[k]"),
    ("self.lift = y, -offset[0]*2/(s[0]*n[0])", "self.lift = y, offset[0]*2/(s[0]*n[0])"),
    ("out.flip(-1) if self.flip else out", "out"),
    ("out[:K] + (out[K:-1] + out[K+1:])/2", "out[:K] + out[K:-1]/2"),
    ("offset = tuple(0. if abs(o) < 1e-6 else o for o in (-s, p, l))",
     "offset = tuple(0. if abs(o) < 1e-6 else o for o in (s, p, l))"),
]

physics = [
    ("hu = hu.clamp(min=-1000)", "hu = hu.clamp(min=-1024)"),
    ("return torch.where(y <= 0, mu/soft - 1000", "return torch.where(y <= 0, mu/soft - 1024"),
    ("(water, bone), (w, b) = attenuation(kev), attenuation(scanner_kev)",
     "(water, bone), (w, b) = attenuation(kev), attenuation(kev)"),
    ("counts = counts + electronic*", "counts = counts + 0*electronic*"),
    ("torch.poisson(photons*expected, generator=generator)", "torch.poisson(photons*expected)"),
    (".5*scatter*_blur(lines.clamp", ".5*_blur(lines.clamp"),
]

drr = [
    ("for a in (-z, y, x)]", "for a in (z, y, x)]"),
    ("for v in np.percentile(a, [.5, 99.5])]", "for v in np.percentile(a, [5, 95])]"),
    ("vol.crop(2*half, center)", "vol.crop(half*2, None)"),
    ("add_noise(lines[None], photons=noise, generator=torch.Generator().manual_seed(seed))",
     "add_noise(lines[None], photons=noise, generator=torch.Generator().manual_seed(0))"),
    ("{'pixel': (pixel, pixel)}", "{}"),
    ("lines = render(part, g, kev)[0]", "lines = render(part, g)[0]"),
    ("g.replace(vol_shape=part.shape, spacing=part.spacing", "g.replace(vol_shape=part.shape"),
]

phantom = [
    ("R = r @ R", "R = R @ r"),
    ("(w, h, -d), center", "(w, h, d), center"),
    ("c*(h if p.adds else h - block)", "c*(h - block)"),
    ("thorax((seed, i), size=size, spacing=spacing).save(path)",
     "thorax((0, i), size=size, spacing=spacing).save(path)"),
    ("np.subtract(center, p.offset)", "np.add(center, p.offset)"),
]

diffusion = [
    ("lambda x0, noise, a, s: a*noise - s*x0", "lambda x0, noise, a, s: a*noise + s*x0"),
    ("lambda snr, least: least/(snr + 1)", "lambda snr, least: least/snr"),
    ("snr.clamp(max=self.gamma)", "snr.clamp(max=5.)"),
    (".clamp(min=self.floor)", ".clamp(min=.1)"),
    ("(mask*err.square()).flatten(1).sum(1)/total", "(mask*err.square()).flatten(1).mean(1)"),
    ("err = torch.where(mask > 0, err, 0.)", "err = err*mask"),
    ("s2 = eta**2*(1 - after)", "s2 = eta*(1 - after)"),
    ("first, last = (b*1000/T for b in betas)", "first, last = betas"),
    ("torch.Generator().manual_seed(int(np.random.SeedSequence(s, spawn_key=(stream,))",
     "torch.Generator().manual_seed(int(np.random.SeedSequence(s, spawn_key=(0,))"),
    ("x0 = x0.clamp(*clip)", "x0 = x0.clamp(-1, 1)"),
    ("x = x - guide_scale*gradient", "x = x - gradient"),
    ("angle = t.float()[:, None]*(1000/steps)*rate", "angle = t.float()[:, None]*rate"),
]

consistency = [
    ("lam = relative_lambda*mean_diagonal(projector, residual)", "lam = relative_lambda"),
    ("d, U = lam + outside.rest**2", "d, U = lam + outside.rest"),
    ("V = U*w[:, None]", "V = U*w.mean()"),
    ("inner = xrays - outside.mean if outside else xrays", "inner = xrays", 'outside'),
    ("return outside.mean + (left @", "return .9*outside.mean + (left @", 'outside'),
    ("errors = small - ridge(xrays, torch.arange(len(xrays)))[:, 0]", "errors = small - ridge(xrays)[:, 0]"),
    ("replace(cohort.config, gain=0., photons=0.)", "replace(cohort.config, kev=80.)"),
    ("(lambda p: lam*p), (lambda r: r)", "(lambda p: 2*lam*p), (lambda r: r)"),
    ("kept = after < otherwise", "kept = after < 2*otherwise"),
    ("error(start) if known else before", "before"),
    ("(xrays[:, v] < threshold)", "(xrays[:, v] < 5*threshold)"),
    ("if mask is not None: empty *= mask", "if mask is not None: empty *= 1."),
    ("found = (projector.adjoint(empty) > 0.98*full) & (full > 0)", "found = projector.adjoint(empty) > 0.5*full"),
    ("air = found if air is None else air | found", "air = found if air is None else air & found"),
    ("return dict(nrmse=_nrmse(a, xrays, keep), ncc=ncc.mean(1))",
     "return dict(nrmse=_nrmse(a, xrays, keep), ncc=ncc[:, 0])"),
    ("da, dy = (keep*(x - (keep*x).sum((2, 3), keepdim=True)/n)", "da, dy = (keep*(x - x.mean((2, 3), keepdim=True))"),
    ("a = projector(hu_to_mu(hu, kev))", "a = projector(hu_to_mu(hu))"),
    ("_nrmse(projector(hu_to_mu(h, kev)) + beyond(h), xrays, keep)",
     "_nrmse(projector(hu_to_mu(h, kev)) + beyond(h), xrays, torch.ones_like(keep))"),
    ("weight = (mu/attenuation(kev)[0]).clamp(floor, 1)*free", "weight = (mu/attenuation(kev)[0]).clamp(.1, 1)*free"),
    ("square()/error_hu**2", "square()/100.**2"),
    ("tau = error_hu/1000*attenuation(kev)[0]", "tau = error_hu/1000*attenuation(60.)[0]"),
    ("relative_lambda/left, steps", "relative_lambda, steps"),
    ("(attenuation(kev)[0]*scale)**2", "(attenuation(60.)[0]*scale)**2"),
]

metrics = [
    ("inner = m[3:-3, 3:-3, 3:-3]", "inner = m[:-6, :-6, :-6]"),
    ("psnr(p[m], t[m], 2000)", "psnr(p, t, 2000)"),
    ("vx, vy, cov, C1, C2 = k*(xx - mx*mx)", "vx, vy, cov, C1, C2 = (xx - mx*mx)"),
    ("'lung': (-950, -500)", "'lung': (-950, -300)"),
    ("fill.SetFullyConnected(True)", "fill.SetFullyConnected(False)"),
    ("return 2*int((a & b).sum())/total", "return int((a & b).sum())/total"),
    ("dice_airspace=dice(own & (pred < AIR_FILLED)", "dice_airspace=dice(body & (pred < AIR_FILLED)"),
    ("edge_match=float((dp*dt).sum()", "edge_match=float(abs(dp*dt).sum()"),
    ("e = (p[m] - t[m]).double()", "e = (p - t).double()"),
    ("for axes in ((1, 2), (0, 2), (0, 1))", "for axes in ((1, 2), (1, 2), (0, 1))"),
    ("ssim(*(v.movedim(axis, 0) for v in unit), 1, dims=2)", "ssim(*unit, 1, dims=2)"),
    ("if moved: t = t.resample_to(p)", "if moved: p = p.resample_to(t)"),
    ("psnr(p, t, R, axes=(1, 2)).mean()", "psnr(p, t, R)"),
]

losses = [
    ("return error.mean() if mask is None else (error*mask).sum()/mask.sum().clamp(min=1)",
     "return error.mean() if mask is None else (error*mask).mean()"),
    ("self.project(pred, target, xrays, mask)", "self.project(pred, target, xrays)"),
    ("self.project(pred, target, xrays, mask)", "self.project(pred, target, None, mask)"),
    ("self.project = ProjectionLoss(projector, kev)", "self.project = ProjectionLoss(projector)"),
    (").abs()/self.reference", ").abs()/5."),
    ("sum(self.weights[name]*value for", "sum(value for"),
]

memory = [
    ("self.needs = self.peak + self.overhead", "self.needs = self.peak"),
    ("self.host = 3*self.weights['']*plan.offload", "self.host = 2*self.weights['']*plan.offload"),
    ("for k, b in self.parts.items() if b]", "for k, b in self.parts.items() if b > 1e6]"),
    ("{GB(self.overhead):>11}   an allowance", "{GB(self.workspace):>11}   an allowance"),
    ("self.fits = self.needs <= self.memory", "self.fits = self.peak <= self.memory"),
    ("for _ in range(plan.copies*plan.train)", "for _ in range(0*plan.copies*plan.train)"),
    ("batch {int(batch*share)} in place of {batch}", "batch {int(batch*share) + 1} in place of {batch}",
     'why: no step of the notebook is small enough for a batch to be advised'),
    ("enabled=plan.precision == 'bf16'", "enabled=True"),
]

figures = [
    ("self.savefig(buffer, format=format, dpi=dpi", "self.savefig(buffer, format=format, dpi=80"),
    ("planes = {'axial': (0, 'RLAP'), 'coronal': (1, 'RLHF')",
     "planes = {'axial': (0, 'LRAP'), 'coronal': (1, 'RLHF')"),
    ("Error=volume - truth", "Error=truth - volume"),
    ("show_error(ax, p-truth, spacing", "show_error(ax, truth-p, spacing"),
    ("mm = [s for i, s in enumerate(spacing) if i != axis]", "mm = [spacing[0], spacing[0]]"),
    ("mm = (index - (shape[axis]-1)/2) * spacing[axis]", "mm = index - (shape[axis]-1)/2"),
    ("side_letters = {'ap': 'RL', 'pa': 'RL', 'lat': 'AP', 'rlat': 'PA'}",
     "side_letters = {'ap': 'RL', 'pa': 'LR', 'lat': 'AP', 'rlat': 'PA'}"),
    ("letter(ax, x-length/2, y + .05*length, f'{length:g} mm'",
     "letter(ax, x-length/2, y + .05*length, f'{2*length:g} mm'"),
    ("/ np.maximum(maps.sum(1, keepdims=True), 1e-12)", "/ maps.shape[1]"),
]

evidence = [
    ("name: predict(model, x[None])[0, 0].numpy()}", "name: hu(y)}"),
    ("score(volume, hu(y)).items()", "score(volume, volume + 1).items()"),
    ("cohort.dataset(part)[example]", "cohort.dataset(part)[0]"),
    ("xrays.flip(1), **out}", "xrays.flip(2), **out}"),
    ("'mirrored X-rays': xrays.flip(-1)", "'mirrored X-rays': xrays.flip(-2)"),
    ("for r in (own, base)), patients)", "for r in (base, own)), patients)"),
    ("ridge=ridge, kev=cohort.config.kev, outside", "ridge=ridge, outside"),
    ("extra | {name: predict(model, xrays)}", "extra | {name: hu}"),
    ("ends = (total/(of_patient @ own.sum(1)))", "ends = (total/len(names))"),
    ("times(runs, len(scores))/len(scores) @ scores", "scores.mean(0, keepdim=True)"),
    ("mu + relax*v.adjoint(", "mu + .5*v.adjoint("),
    ("q = q + _slope(ahead)/2", "q = q + _slope(mu)/2"),
    ("torch.linalg.solve(G + sigma**2*torch.eye", "torch.linalg.solve(G + sigma*torch.eye"),
    ("min(settings, key=lambda s: error(f, s))", "max(settings, key=lambda s: error(f, s))"),
    ("if with_ > max(without, 0): save_outside(outside, run)", "if with_ < 0: save_outside(outside, run)"),
    ("if n < seeds: return 'open'", "if n < 1: return 'open'", 'claims'),
    ("made.get('revision') in (None, '', 'no git repository')", "made.get('revision') in (None, '')"),
    ("half=len(cases)*config.size**3 > 2**29", "half=len(cases)*config.size**3 > 2**9"),
    ("A, kev=kev, outside=outside and outside.of(i), **kw)", "A, outside=outside and outside.of(i), **kw)"),
    ("A, kev=kev, outside=outside and outside.of(i), **kw)", "A, kev=kev, outside=outside and outside.of(i))"),
    ("A, kev=kev, outside=outside and outside.of(i), **kw)", "A, kev=kev, **kw)", 'evaluate'),
    ("for c, h in ((False, hu), (True, fixed))", "for c, h in ((False, hu), (True, hu))"),
    ("fit = {f'reprojection_{k}': v.tolist()", "fit = {f'reprojection_{k}': v[:1].expand(len(v)).tolist()"),
    ("reprojection_error(hu, xrays, projector, kev=kev, outside=outside).items()",
     "reprojection_error(hu, xrays, projector, outside=outside).items()"),
    ("back_projection(k.inner(x), k.projector, k.kev)", "back_projection(k.inner(x), k.projector)"),
    ("return {m for m, x in v.items() if x == max(v.values())}",
     "return {m for m, x in v.items() if x == min(v.values())}"),
    ("[(text(row, k), m in won[k]) for k in keys]", "[(text(row, k), m == self.method) for k in keys]"),
    ("m['mean'] - factor*m['spread'] > margin", "m['mean'] - m['spread'] > margin"),
    ("[float(x) - float(y) for x, y in zip(a, b)]", "[float(y) - float(x) for x, y in zip(a, b)]"),
]

blocks = [
    ("covered/(b-a)", "covered"),
    ("unit(u, geometry.det_shape[1]), unit(v, geometry.det_shape[0])",
     "unit(u, geometry.det_shape[0]), unit(v, geometry.det_shape[1])"),
    ("spacing = [e/n for e, n in zip(geometry.extent, vol_shape)]",
     "spacing = [geometry.extent[0]/n for n in vol_shape]"),
    ("(x.abs() < 1e-3)", "(x.abs() < 1e-1)"),
    ("limit = self.factor*self.healthy.setdefault(name, std)", "limit = .1*self.healthy.setdefault(name, std)"),
    ("outer = [n for n in hits if not any(n.startswith(h + '.') for h in hits)]", "outer = hits"),
    ("attend(*qkv(part + before).chunk(3, -1), self.heads)", "attend(*qkv(part).chunk(3, -1), self.heads)"),
    ("torch.cat([conv(taps[1:]), inner, conv(taps[:-1])], axis)",
     "torch.cat([conv(taps[:-1]), inner, conv(taps[1:])], axis)"),
    ("low, high = max(0, a//r - 1), min(x.shape[2], -(-b//r) + 1)",
     "low, high = max(0, a//r), min(x.shape[2], -(-b//r))"),
]

ranks = [
    ("ends = [b*i//W for i in range(W + 1)]", "ends = [i*(b//W) for i in range(W + 1)]"),
    ("weight = self.dl.bs/self.dl.whole", "weight = 1/world()"),
    ("[hands[i % world()][i//world()] for i in range(sum(map(len, hands)))]", "[v for hand in hands for v in hand]"),
]

files = [
    ("intensity = x if inverted else top - x", "intensity = top - x if inverted else x", 'radiograph', 'reconstruct'),
    ("more, assumed, inside, (1 << _bits(ds)) - 1)", "not more, assumed, inside, (1 << _bits(ds)) - 1)", 'radiograph'),
    ("relative_log(x, relation, more != falls, assumed, inside)", "relative_log(x, relation, more, assumed, inside)"),
    ("votes[f'PixelIntensityRelationshipSign {sign:+g}'] = sign == 1",
     "votes[f'PixelIntensityRelationshipSign {sign:+g}'] = sign == -1", 'tags', 'radiograph'),
    ("votes[name] = (photometric == 'MONOCHROME1') != turned",
     "votes[name] = photometric == 'MONOCHROME1'", 'tags', 'radiograph'),
    ("return _falls(lambda v: apply_voi(v, ds, index=0), whole)", "return False", 'tags', 'radiograph'),
    ("if down[0] == 'H': a = a[::-1]", "if down[0] == 'H': a = a[:, ::-1]"),
    ("if swap: a, right, down = a.T, down, right", "if swap: a, right, down = a[::-1].T, down, right"),
    ("ends = [_own_sign(v, allocated, stored, signed) for v in (value, limit)",
     "ends = [_own_sign(v, allocated, stored, signed) for v in (value,)",
     'tags', 'dicom', 'radiograph'),
    ("return (a << (self.allocated - 1 - self.high)) >> (self.allocated - self.stored)", "return a"),
    ("if off(known) > ANGLE: return view_name(angle)", "if off(known) > 9*ANGLE: return view_name(angle)"),
    ("inside &= (x > left) & (x < right) & (y > upper) & (y < lower)",
     "inside &= (x > upper) & (x < lower) & (y > left) & (y < right)"),
]

acquisition = [
    ("lap = torch.minimum(a + target/2, b + pixel/2) - torch.maximum(a - target/2, b - pixel/2)",
     "lap = torch.minimum(a + target/2, b + target/2) - torch.maximum(a - target/2, b - target/2)"),
    ("zip(xrays.shape[-2:], pixel, geometry.det_shape, geometry.pixel))",
     "zip(xrays.shape[-2:], pixel[::-1], geometry.det_shape, geometry.pixel))"),
    ("return sdd, spd - half", "return sdd, spd + half"),
    ("return tuple(s*found[1]/found[0]*to_detector for s in p.pixel)", "return p.pixel"),
    ("box &= ((x >= body[k, 0]) & (x <= body[k, 1]))", "box &= ((x >= -body[k, 1]) & (x <= -body[k, 0]))"),
    ("field_ &= (abs(x) <= g.extent[k]/2)", "field_ &= (abs(x) <= g.extent[0]/2)"),
    ("return P(outside)[0] <= tolerance", "return P(outside)[0] <= 40*tolerance"),
    ("inner = inside_field(g, body).to(x.device) if body is not None else True", "inner = True"),
    ("dict(mask=mask[None], kev=kev, outside=outside) | kw", "dict(mask=mask[None], outside=outside) | kw",
     'reconstruct'),
    ("dict(mask=mask[None], kev=kev, outside=outside) | kw", "dict(mask=mask[None], kev=kev) | kw", 'reconstruct'),
    ("(('with consistency', after), ('as predicted', before))",
     "(('with consistency', before), ('as predicted', before))"),
    ("reprojection=rounded(final), consistency", "reprojection=rounded(predicted), consistency"),
    ("title='Reconstruction', metrics={**(scores or {}), **flat})", "title='Reconstruction', metrics=flat)"),
]

slices = [
    ("thickness_mm=T.mm, thickness_from", "thickness_mm=T.mm/T.width.spacing, thickness_from"),
    ("try: S = between(grid, vol, T.mm) if consistency", "try: S = between(grid, vol) if consistency"),
    ("return S/covered", "return S", 'slab'),
    ("n = round(((m - 1)*s + max(s, thickness or s))/spacing)", "n = round(m*s/spacing)"),
    ("S = between(thin, thick, slab_thickness(thick, thickness)[0])",
     "S = between(thin, thick)", 'slices', 'interpolate', 'slice_report'),
    ("mean += off/(k + 1)", "mean += off/2", 'interpolate', 'latent'),
    ("torch.arange(m).double() + .5 - m/2)*ratio + (n - 1)/2", "torch.arange(m).double() + .5)*ratio - .5", 'pairs'),
    ("return operators[:, 1].sum(-1)[:, None, :, None, None] > .5",
     "return operators[:, 1].sum(-1)[:, None, :, None, None] > -1", 'pairs', 'thin'),
    ("return self.l1*e.abs().mean() + self.mse*e.square().mean()",
     "return e.abs().mean() + e.square().mean()", 'thin', 'arrives.py losses.thin'),
]

command_line = [
    ("noise=noise, kev=kev, seed=seed)\n        write_xrays",
     "noise=noise, kev=kev)\n        write_xrays", 'arrives.py drr'),
    ("r = reconstruct([ap, lat], weights, geometry, consistency, refuse=not force, known",
     "r = reconstruct([ap, lat], weights, geometry, refuse=not force, known", 'arrives.py reconstruct'),
    ("r.save(folder, true)", "r.save(folder)", 'arrives.py reconstruct'),
    ("seed=seed, cohort=cohort_config(size=size, spacing=spacing, xrays=xrays))",
     "seed=seed, cohort=cohort_config(size=size, spacing=spacing))", 'arrives.py train'),
    ("seed=seed, cohort=cohort_config(size=size, spacing=spacing, xrays=xrays))",
     "cohort=cohort_config(size=size, spacing=spacing, xrays=xrays))", 'arrives.py train'),
    ("cases, before = find_cases(cts)[i - 1::n]", "cases, before = find_cases(cts)[i::n]", 'arrives.py preprocess'),
    ("true, vol = None if thin is None else read_ct(thin), read_ct(thick, series=series)",
     "true, vol = None if thin is None else read_ct(thin), read_ct(thick)", 'arrives.py interpolate'),
    ("how = spacing, method, consistency, thickness, net, samples",
     "how = spacing, method, True, thickness, net, samples", 'arrives.py interpolate'),
]

training = [
    ("wd=config.weight_decay,\n", "wd=.02,\n", 'arrives.py RunConfig.weight_decay'),
    ("projection = run.projection or .3*self.config.use_physics_loss\n    return ReconstructionLoss",
     "projection = run.projection\n    return ReconstructionLoss", 'arrives.py direct.use_physics_loss'),
    ("return ReconstructionLoss(run.l1, run.mse, run.ssim, projection, projector=self.projector, kev=run.cohort.kev)",
     "return ReconstructionLoss(run.l1, run.mse, run.ssim, projection, projector=self.projector)",
     'arrives.py direct.kev'),
    ("return ReconstructionLoss(run.l1, run.mse, run.ssim, projection,",
     "return ReconstructionLoss(run.l1, 1., run.ssim, projection,", 'arrives.py RunConfig.mse'),
    ("return DiffusionLoss(run.projection or .3*self.config.use_physics_loss",
     "return DiffusionLoss(run.projection", 'arrives.py cascade.use_physics_loss'),
    ("\"The energy is the cohort's.\"\n    return dict(kev=run.cohort.kev)", "return {}", 'arrives.py direct.kev'),
    ("cohort.dataloaders(config.batch, config.seed, device, config.num_workers, config.passes or 1)",
     "cohort.dataloaders(config.batch, config.seed, device, config.num_workers)", 'arrives.py RunConfig.passes'),
    ("Guard(config.clip)", "Guard(1.)", 'arrives.py RunConfig.clip'),
    ("EMA(config.ema)", "EMA(.99)", 'arrives.py RunConfig.ema'),
    ("Reseed(config.seed)", "Reseed(0)", 'arrives.py RunConfig.seed'),
    ("lines = project_hu(hu, geometry, spacing, c.kev", "lines = project_hu(hu, geometry, spacing, 60.",
     'arrives.py CohortConfig.kev'),
    ("return alike.repeat(1, 1 + self.copies)", "return torch.cat([alike, *[alike & False]*self.copies], 1)", 'ridge'),
    ("ds.epoch = -1 - k//n", "ds.epoch = -1 - k", 'items'),
    ("return 2 if short and", "return 4 if short and", 'config'),
    ("if lam is None: lam = self._choose(K, scale, lambdas)",
     "if lam is None or lam: lam = self._choose(K, scale, lambdas)", 'ridge'),
    ("M = torch.linalg.inv(K + lam*scale*torch.eye(", "M = torch.linalg.inv(K + lam*torch.eye(", 'ridge'),
]

peers = [
    ("mean = torch.stack(each).mean(0)", "mean = each[0]"),
    ("flat = g.replace(mode='parallel', pixel=(D/h, max(H, W)/w))", "flat = g.replace(mode='parallel')"),
    ("for x, grid in zip(pictures.unbind(1), self.grid)]",
     "for x, grid in zip(pictures.unbind(1), self.grid.flip(0))]"),
    ("for read, block in zip(self.seen, self.before): h = block(h + read(seen))",
     "for read, block in zip(self.seen, self.before): h = block(h)"),
    ("start = self.base_volume(xrays, case) - float(c.base == 'none')", "start = self.base_volume(xrays, case)"),
    ("self.net.place(g)\n    return self", "return self"),
    ("weight = (1/(count.double()*len(count)))[which][order].cumsum(0)",
     "weight = torch.full_like(ordered, 1/len(ordered)).cumsum(0)", 'ensemble'),
    ("return factors.to(spread)[tissue_kind(centre)]*(spread + floor)",
     "return factors.to(spread)[tissue_kind(centre)]*spread", 'ensemble'),
    ("self.factors[int(consistent)]", "self.factors[0]", 'ensemble'),
    ("return (count.cumsum(0).double() - (count.double() - 1)/2)[which]", "return count.cumsum(0).double()[which]",
     'ensemble'),
    ("self.members[-1].set_extra(m)", "pass", 'ensemble'),
]

families = dict(geometry=geometry, projector=projector, physics=physics, drr=drr, phantom=phantom, diffusion=diffusion,
                consistency=consistency, metrics=metrics, losses=losses, memory=memory, figures=figures,
                evidence=evidence, blocks=blocks, ranks=ranks, files=files, acquisition=acquisition,
                slices=slices, command_line=command_line, training=training, peers=peers)
