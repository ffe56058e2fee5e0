"""`clinseg evaluate --downstream`: what enhancement does to the measurement that follows."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.checkpoint import read_checkpoint, write_checkpoint
from pipeline.config import load_job
from pipeline.errors import ConfigError, InputError
from pipeline.inference.downstream import (
    ENHANCED,
    ORIGINAL,
    TRUTH,
    find_effects,
    find_turns,
    measure_case,
    tell_effect,
)
from pipeline.labels import MEAN, LabelContract
from pipeline.tracking import start_record
from pipeline.volume import Grid, Volume
from pipeline.workflows.downstream import _measure
from pipeline.workflows.reports.runs import downstream_remarks
from pipeline.workflows.tasks.enhancement import EnhancementColumn

STRUCTURES = {"core": (1,), "shell": (2,)}
AFFINE = np.diag([1.0, 2.0, 1.5, 1.0])


def volume(array, affine=AFFINE):
    return Volume(array, Grid(array.shape, affine))


def label_map(core=3, shell=2):
    """Slabs of `core` and `shell` planes."""
    array = np.zeros((12, 8, 6), np.uint8)
    array[2 : 2 + core] = 1
    array[7 : 7 + shell] = 2
    return array


def measure(case, original, enhanced, reference=None):
    truth = label_map() if reference is None else reference
    return measure_case(
        case, {ORIGINAL: volume(original), ENHANCED: volume(enhanced)}, volume(truth), STRUCTURES
    )


def test_volumes_and_dice_are_those_of_the_masks():
    core, shell = measure("a", label_map(core=2), label_map())
    assert (core.structure, shell.structure) == ("core", "shell")
    assert core.reference_ml == pytest.approx(3 * 8 * 6 * 3e-3)
    assert core.figures[ORIGINAL]["dice"] == pytest.approx(4 / 5) and core.figures[ENHANCED]["dice"] == 1
    assert core.figures[ORIGINAL]["volume_error_ml"] == pytest.approx(8 * 6 * 3e-3)
    assert core.figures[ENHANCED]["volume_error_ml"] == 0


def test_what_appears_and_disappears_is_listed_with_what_is_true():
    rows = [
        *measure("lost", label_map(), label_map(shell=0)),
        *measure("made up", label_map(shell=0), label_map(), label_map(shell=0)),
        *measure("as before", label_map(shell=0), label_map(shell=0)),
    ]
    assert (
        "In 1 case a structure"
        in tell_effect(
            find_effects(rows), find_turns(measure("both", label_map(), np.zeros((12, 8, 6), np.uint8)))
        )[0]
    )
    turns = find_turns(rows)
    assert [(turn.case, turn.structure, turn.what) for turn in turns] == [
        ("lost", "shell", "disappeared"),
        ("made up", "shell", "appeared"),
    ]
    assert turns[0].reference_ml > 0 == turns[1].reference_ml
    told, is_warning = tell_effect(find_effects(rows), turns)
    assert is_warning and "In 2 cases a structure wrongly appears or disappears" in told


@pytest.mark.parametrize(("before", "after", "word"), [(1, 3, "rises"), (3, 1, "falls"), (2, 2, "not shown")])
def test_a_fall_of_dice_is_a_warning(before, after, word):
    rows = [row for n in range(8) for row in measure(str(n), label_map(core=before), label_map(core=after))]
    effects = find_effects(rows)
    told, is_warning = tell_effect(effects, find_turns(rows))
    assert word in told and is_warning == (word == "falls")
    assert set(effects) == {"core", "shell", MEAN}
    change = effects[MEAN]["dice"].change
    means = [effects[MEAN]["dice"].images[image].mean for image in (ORIGINAL, ENHANCED)]
    assert change.value == pytest.approx(means[1] - means[0])


def test_masks_on_a_parallel_grid_are_brought_to_that_of_the_reference_and_cut_to_what_both_show():
    truth = label_map()
    half = volume(truth[:, ::-1, :4], AFFINE @ nib.affines.from_matvec(np.diag([1, -1, 1]), [0, 7, 0]))
    rows = measure_case("a", {ORIGINAL: half, ENHANCED: half}, volume(truth), STRUCTURES)
    assert all(row.figures[ENHANCED]["dice"] == 1 for row in rows)
    assert rows[0].reference_ml == pytest.approx(3 * 8 * 4 * 3e-3)
    turned = volume(truth, nib.affines.from_matvec(nib.eulerangles.euler2mat(0.3)) @ AFFINE)
    with pytest.raises(InputError, match="truth-grid"):
        measure_case("a", {ORIGINAL: turned, ENHANCED: turned}, volume(truth), STRUCTURES)


def test_what_is_found_at_voxels_to_ignore_changes_nothing(tmp_path):
    unknown = np.where(label_map() == 0, 255, label_map()).astype(np.uint8)
    maps = {ORIGINAL: label_map(), ENHANCED: np.maximum(label_map(), 1), "reference": unknown}
    paths = {name: tmp_path / f"{name}.nii.gz" for name in maps}
    for name, path in paths.items():
        nib.save(nib.Nifti1Image(maps[name], AFFINE), path)
    labels = {"background": 0, "core": 1, "shell": 2}
    reference = paths.pop("reference")
    for ignore_value, dice in ((255, 1.0), (None, 2 * 3 / (3 + 10))):
        contract = LabelContract(labels, ignore_value=ignore_value)
        (core, _) = _measure(contract, {"a": paths}, {"a": reference}).rows
        assert core.figures[ORIGINAL]["dice"] == 1
        assert core.figures[ENHANCED]["dice"] == pytest.approx(dice)


@pytest.fixture
def enhanced(trained, tmp_path):
    """Phantoms that were made of noise, as `clinseg enhance` leaves them, and the truth."""
    study = trained.manifest.parent
    for number in (1, 2):
        name = f"phantom_{number:02d}.nii.gz"
        image = nib.load(study / "imagesTr" / name)
        noise = np.random.default_rng(number).normal(size=image.shape).astype(np.float32) * 300
        for folder in ("enhanced/changes", "truth", "labels"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(study / "imagesTr" / name, tmp_path / "enhanced" / name)
        shutil.copy(study / "imagesTr" / name, tmp_path / "truth" / name)
        shutil.copy(study / "labelsTr" / name, tmp_path / "labels" / name)
        nib.save(nib.Nifti1Image(noise, image.affine), tmp_path / "enhanced/changes" / name)
    return tmp_path / "enhanced"


def evaluate(clinseg, trained, enhanced, *more):
    model = trained.run / "checkpoints/best.safetensors"
    return clinseg("evaluate", enhanced, enhanced.parent / "truth", "--downstream", model, *more)


def test_a_perfect_enhancement_measures_as_the_truth_does(clinseg, trained, enhanced):
    answer = evaluate(clinseg, trained, enhanced)
    assert answer.code == 0 and "enhanced - original" in answer.out
    report = json.loads((enhanced / "downstream.json").read_text())
    dice = report["effects"][MEAN]["dice"]
    assert dice["images"][ENHANCED]["mean"] == 1 > dice["images"][ORIGINAL]["mean"]
    assert dice["change"]["value"] == pytest.approx(1 - dice["images"][ORIGINAL]["mean"])
    assert set(dice["images"]) == {ORIGINAL, ENHANCED} and report["num_cases"] == 2
    assert report["reference"] == "segmentations of the true images"
    with (enhanced / "downstream.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (len(report["effects"]) - 1)
    masks = [enhanced / "downstream" / image / "phantom_01.nii.gz" for image in (ENHANCED, TRUTH)]
    assert np.array_equal(*(np.asarray(nib.load(path).dataobj) for path in masks))


def test_label_maps_make_the_true_image_a_candidate(clinseg, trained, enhanced):
    answer = evaluate(clinseg, trained, enhanced, "--labels", enhanced.parent / "labels")
    assert answer.code == 0
    report = json.loads((enhanced / "downstream.json").read_text())
    images = report["effects"][MEAN]["dice"]["images"]
    assert set(images) == {ORIGINAL, ENHANCED, TRUTH} and images[TRUTH] == images[ENHANCED]
    assert report["reference"] == "label maps"


def test_cases_that_lack_something_are_named_and_the_others_measured(clinseg, trained, enhanced):
    (enhanced / "changes/phantom_01.nii.gz").unlink()
    answer = evaluate(clinseg, trained, enhanced)
    assert answer.code == 3 and "phantom_01: " in answer.err and "change-missing" in answer.err
    report = json.loads((enhanced / "downstream.json").read_text(), parse_constant=pytest.fail)
    assert report["num_cases"] == 1
    assert report["effects"]["mean"]["dice"]["change"]["low"] is None, "one case says nothing of others"


def test_label_maps_are_looked_for_before_anything_is_segmented(clinseg, trained, enhanced):
    (enhanced.parent / "labels/phantom_01.nii.gz").unlink()
    answer = evaluate(clinseg, trained, enhanced, "--labels", enhanced.parent / "labels")
    assert answer.code == 3 and "phantom_01: it has no label map" in answer.err
    assert [path.name for path in (enhanced / "downstream/truth").iterdir()] == ["phantom_02.nii.gz"]
    assert json.loads((enhanced / "downstream.json").read_text())["num_cases"] == 1
    shutil.rmtree(enhanced / "downstream")
    answer = evaluate(clinseg, trained, enhanced, "--labels", enhanced / "nowhere")
    assert answer.code == 3 and "nowhere: expected a folder of label maps" in answer.err
    assert not (enhanced / "downstream").exists()


def write_two_channel_model(trained, path):
    """The trained segmentation with a second channel, which nothing gets to see."""
    checkpoint = read_checkpoint(trained.model)
    write_checkpoint(path, replace(checkpoint, channels=(*checkpoint.channels, "second")))
    return path


def test_a_model_of_other_channels_is_refused_once_and_takes_nothing_away(clinseg, trained, enhanced):
    model = write_two_channel_model(trained, enhanced.parent / "two.safetensors")
    (enhanced / "downstream.json").write_text("of an earlier evaluation")
    answer = clinseg("evaluate", enhanced, enhanced.parent / "truth", "--downstream", model)
    assert answer.code == 2 and answer.err.count("num-channels") == 1
    assert (enhanced / "downstream.json").read_text() == "of an earlier evaluation"


def test_a_job_whose_measuring_model_has_other_channels_is_not_trained(trained, tmp_path):
    model = write_two_channel_model(trained, tmp_path / "two.safetensors")
    config = Path(__file__).parents[1] / "configs/smoke/enhancement.yaml"
    images = trained.manifest.parent / "imagesTr"
    job = load_job(config, [f"data.manifest={images}", f"inference.downstream={model}"])
    with pytest.raises(ConfigError, match="num-channels"):
        EnhancementColumn().load_material(job)


def test_a_report_says_what_could_not_be_measured_but_not_where_it_lies(quick_databases, tmp_path):
    record = start_record("a", None, "enhancement", tmp_path)
    path = record.folder / "validation/enhanced/downstream.json"
    path.parent.mkdir(parents=True)
    path.write_text(
        json.dumps({"told": None, "faults": ["p1: /home/Miller_Ann/p1.nii.gz is cut [truncated]"]})
    )
    assert downstream_remarks([record.run]) == ["Not measured: p1: p1.nii.gz is cut [truncated]"]
    record.close("FINISHED", 0.0)


def test_options_that_do_not_go_together_are_refused(clinseg, trained, enhanced):
    assert clinseg("evaluate", enhanced, enhanced, "--labels", enhanced).code == 2
    assert evaluate(clinseg, trained, enhanced, "--ignore", "3", "-o", enhanced / "a.csv").code == 2
    answer = evaluate(clinseg, trained, enhanced / "changes")
    assert answer.code == 2 and "not-enhanced" in answer.err
