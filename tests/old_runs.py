"""Weights and run folders that release 0.1.0 wrote: they load, predict the same, and are resumed. Its import paths
still work.

    python tests/old_runs.py [--bits] [FOLDER]

FOLDER holds what `old/0.1.0/make.py` wrote with that release; the committed one has every kind of model, and two
runs that were stopped.
Predictions are compared to 1e-5 of their range, the weights of resumed runs to 1e-3 of a tensor's range (a tensor
smaller than 1e-4 is rounding noise on another CPU); with `--bits`, on the machine that wrote them, to the last bit.
"""
import argparse, contextlib, io, os, shutil, tempfile
from pathlib import Path

def difference(a, b, least=0.): return ((a - b).abs().max()/b.abs().max().clamp(min=least)).item()

def predict(folder):
    "A loaded model's prediction, and the one that 0.1.0 wrote down."
    import torch
    from safetensors.torch import load_file
    from xray_ct.models.saved import load_saved
    given = load_file(folder/'expected.safetensors')
    expected = given.pop('prediction')
    with torch.no_grad(): return load_saved(folder)(**given), expected

def resume(top, name, where):
    "Go on with a stopped run in a copy; returns its folder."
    from xray_ct.files import read_json
    from xray_ct.training import RunConfig, fit
    run = where/name
    shutil.copytree(top/f'{name}-stopped', run)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        fit(RunConfig(**read_json(run/'run.json')['config']), top/'cts', run, where/'cache')
    assert 'Resuming in epoch 1 after step 0.' in said.getvalue(), said.getvalue()
    return run

old_paths = {  # names that 0.1.0 and 0.2.0 had elsewhere, importable there until 0.3
    'blocks.attention': 'shuffle3d unshuffle3d',
    'data.cohort': 'TO_LPS project_hu random_affine sample_field vary_picture whole_grid',
    'data.dicom': """
        CAPTURE DEFLATED Frames Header KEPT META NOTICE Slice TAGS UNPACKED ZIP_RATIO ZIP_TOTAL check_deflated
        check_frame check_hu check_zip common_tags find_cts first_ct frames_of is_empty numbers open_files parse
        patient_table plain_voxels save_dataset to_slice write_dicom""",
    'data.phantom': 'Ellipsoid Loft Part Phantom Tubes Within paint',
    'data.radiograph': """
        CALIBRATED OPPOSITE POSITION SCALE from_grey geometry_tags grey_scale relative_log row_letters to_grey
        view_name view_tags write_xray write_xrays xray_dataset""",
    'figures': """
        Page as_array as_grid axis_letters cut edges error_bar error_map faint headline hues ink is_number label missing
        number picture planes save_figure scale_bar show_planes show_xray strip unit where words""",
    'interpolate': """
        averaged_back covered far_from_training page save_slices scores_markdown sections slab_thickness summary
        words""",
    'memory': 'Block Checkpointed Constants LikeCuda Tracker blocks_of checkpoint_blocks kinds without_data',
    'models.direct': 'ResBlock3d Stored UNet3d alone backbones direct_preset norm3d shuffle3d unshuffle3d zeroed',
    'models.cascade': 'kinds',
    'projector': 'view_angle',
    'report': 'provenance',
    'training': """
        Accumulate Bar Cohort CohortConfig Diverged EMA EpochLog Gate GiveXrays Guard Page PairCohort PairConfig
        Penalty Reseed RunConfig SaveBest Schedule Score State Stop averaged build cohorts criterion fit
        fit_base learner learning_rate live_line measure_floors model_config model_page models older preset_of
        presets psnr read_state rehearsal save_state shift stage_before tracker tune_allocator with_settings""",
    'reconstruct': 'onto_detector overlap OTHER_SIDE distances order_by_view place',
    'volume': """
        DTYPES NIFTI NOT_HU centered_affine check_header check_packed hu_doubts nifti_header read_nifti to_canonical"""}

def check_old_paths():
    "Everything that was public, where it was."
    from importlib import import_module
    from xray_ct.models.direct import DirectModel
    from xray_ct.models.progressive import ProgressiveModel
    from xray_ct.models.thin import ThinNet
    from xray_ct.training import cohorts, models, presets
    for module, names in old_paths.items():
        missing = [n for n in names.split() if not hasattr(import_module(f'xray_ct.{module}'), n)]
        assert not missing, f'xray_ct.{module} lacks {missing}'
    assert models['thin'][1] is ThinNet and cohorts['thin'][0].__name__ == 'PairConfig' and len(presets) == len(models)
    assert import_module('xray_ct.models.cascade').kinds['progressive'] is ProgressiveModel
    assert DirectModel.finer is DirectModel.fine_correction and presets['direct'] == DirectModel.preset

def main():
    import torch
    from safetensors.torch import load_file
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('folder', nargs='?', type=Path, default=Path(__file__).parent/'old'/'0.1.0')
    p.add_argument('--bits', action='store_true', help='demand equality to the last bit')
    a = p.parse_args()
    torch.set_num_threads(1)
    check_old_paths()
    names = sorted(f.parent.name for f in a.folder.glob('*/expected.safetensors'))
    assert len(names) == 8, names
    top = a.folder.resolve()
    with tempfile.TemporaryDirectory() as where:
        os.chdir(where)
        for name in names:
            d = difference(*predict(top/name))
            assert d < 1e-5 and not (a.bits and d), f'{name}: the prediction differs by {d}'
            print(f'{name:12} prediction differs by {d:.1e}', flush=True)
            if not (top/f'{name}-stopped').exists(): continue
            ended, expected = (load_file(f/'model.safetensors') for f in (resume(top, name, Path(where)), top/name))
            assert ended.keys() == expected.keys()
            bits = all(torch.equal(ended[k], v) for k, v in expected.items())
            worst = max(difference(ended[k].float(), v.float(), 1e-4) for k, v in expected.items())
            assert worst < 1e-3 and (bits or not a.bits), f'{name}: resumed, a tensor differs by {worst}'
            print(f'{"":12} resumed, its weights differ by {worst:.1e}', flush=True)

if __name__ == '__main__': main()
