"""From any fingerprint a job that loads, builds and can be afforded."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import commented_yaml, load_job
from pipeline.labels import LabelContract
from pipeline.networks import build_network
from pipeline.planning import Machine, describe_study, pace, plan_job

MANIFEST = Path("/data/liver/dataset.json")

axes = st.tuples(*(st.floats(0.3, 8),) * 3)
shapes = st.tuples(*(st.integers(1, 700),) * 3)
machines = st.builds(
    Machine,
    device=st.sampled_from(["cpu", "cuda"]),
    name=st.just("a machine"),
    num_cores=st.integers(1, 128),
    free_memory=st.integers(2**30, 2**37),
    learns_in_bfloat16=st.booleans(),
)


@settings(max_examples=60)
@given(
    data=st.fixed_dictionaries(
        {
            "spacings": st.lists(axes, min_size=1, max_size=6),
            "shape": shapes,
            "thickness": axes,
            "ml": st.floats(1e-3, 1e4),
            "air": st.sampled_from([0.0, -1000.0]),
            "folds": st.sampled_from([(), (0,), (1, 2)]),
        }
    ),
    machine=machines,
    minutes=st.floats(0.1, 10_000),
)
def test_whatever_the_study_the_job_is_valid_and_affordable(study, data, machine, minutes):
    fingerprint = study(**data)
    job = plan_job(fingerprint, machine, minutes, MANIFEST).job
    patch = job.training.patch_size
    assert all(n % stride == 0 for n, stride in zip(patch, job.network.total_stride, strict=True))
    assert 2 <= job.training.batch_size <= machine.largest_batch
    # Never beyond the memory, except for the smallest patch there is.
    voxels = job.training.batch_size * math.prod(patch)
    assert machine.bytes_of_step(voxels) <= max(machine.free_memory / 2, machine.bytes_of_step(2 * 16**3))
    assert job.preprocessing.normalisation == ("dataset" if data["air"] else "zscore")
    assert job.data.fold == (
        data["folds"][0] if data["folds"] else 0 if len(fingerprint.cases) > 1 else "none"
    )
    if job.network.dimensions == 2:
        assert set(job.preprocessing.orientation) == set("RAS")


def plan(fingerprint, machine, minutes=60.0, manifest=MANIFEST):
    return plan_job(fingerprint, machine, minutes, manifest)


def test_the_written_yaml_loads_as_the_planned_job_and_builds(study, laptop, tmp_path):
    fingerprint = study(
        spacings=[(0.8, 0.8, 5.0)] * 4, shape=(320, 320, 24), labels={"background": 0, "a: b": 3}
    )
    planned = plan_job(fingerprint, laptop, 30.0, tmp_path / "cases.csv", names_labels=True)
    planned = planned.changed(pace(50, 0.5, 12.0))
    path = tmp_path / "job.yaml"
    text = commented_yaml(planned.to_mapping(Path("cases.csv")), planned.reasons, describe_study(fingerprint))
    path.write_text(text, encoding="utf-8")
    assert load_job(path) == planned.job
    assert max(map(len, text.splitlines()[3:])) <= 110
    for reason in planned.reasons.values():
        assert reason.split()[0] in text
    build_network(planned.job.network, 1, 2)


def test_ct_is_known_by_name_or_by_its_air(study, laptop):
    def normalisation(**study_like):
        return plan(study(**study_like), laptop).job.preprocessing.normalisation

    assert normalisation(channel="CT", air=0.0) == "dataset"  # as in OpenKBP, where 1000 was added
    assert normalisation(channel="image", air=-1000.0) == "dataset"
    assert normalisation(channel="image", air=0.0) == "zscore"
    air, none = (study(channel="image", air=hu).cases for hu in (-1000.0, 0.0))
    for cases, expected in (((*air[:4], none[0]), "dataset"), ((*air[:3], *none[:2]), "zscore")):
        mixed = replace(study(channel="image"), cases=cases)
        assert plan(mixed, laptop).job.preprocessing.normalisation == expected, "four of five"


def test_sides_change_places_or_are_not_mirrored(study, laptop):
    paired = plan(study(labels={"background": 0, "RightParotid": 1, "LeftParotid": 2, "cord": 3}), laptop)
    assert paired.job.augmentation.mirror_axes == (0,)
    assert paired.job.data.left_right_pairs == (("RightParotid", "LeftParotid"),)
    alone = plan(study(labels={"background": 0, "RightParotid": 1, "LeftParotid": 2, "Lung_L": 3}), laptop)
    assert alone.job.augmentation.mirror_axes == alone.job.data.left_right_pairs == ()
    assert "Lung_L" in alone.reasons["augmentation.mirror_axes"]
    plain = plan(study(), laptop)
    assert plain.job.augmentation.mirror_axes == (0,) and not plain.job.data.left_right_pairs


VALUES = {"background": 0, "label_1": 1, "left_tumour": 2, "label_3": 3, "right_tumour": 4}


@pytest.mark.parametrize(
    ("labels", "regions", "alone"),
    [
        (
            {"background": 0} | {f"label_{n}": n for n in (1, 2, 3, 4)},
            {"left_lung": (1, 2), "right_lung": (3, 4)},
            "left_lung, right_lung",
        ),
        (
            VALUES,
            {"left_kidney": (1, 2), "left_tumour": (2,), "right_kidney": (3, 4), "right_tumour": (4,)},
            "left_kidney, right_kidney",
        ),
        (VALUES, {"tumour": (2, 4), "left_tumour": (2,), "right_tumour": (4,)}, None),
    ],
)
def test_regions_of_two_sides_change_places_or_are_not_mirrored(study, laptop, labels, regions, alone):
    planned = plan(study(labels=labels, regions=regions), laptop)
    job, reason = planned.job, planned.reasons["augmentation.mirror_axes"]
    if alone:
        assert job.augmentation.mirror_axes == job.data.left_right_pairs == ()
        assert reason.endswith(alone)
    else:
        assert job.augmentation.mirror_axes == (0,)
        assert job.data.left_right_pairs == (("left_tumour", "right_tumour"),)
        assert LabelContract(labels, regions).channel_laterality(0, job.data.left_right_pairs) is not None
    told = "\n".join(describe_study(study(labels=labels, regions=regions)))
    assert all(f"{name}: 10 ml" in told for name in regions) and "label_1" not in told


def test_what_some_cases_lack_is_asked_about(study, laptop):
    whole = study(labels={"background": 0, "organ": 1, "lesion": 2})
    assert "data.absent_means_unlabelled" not in plan(whole, laptop).reasons
    without = replace(whole.cases[0], structures={"organ": whole.cases[0].structures["organ"]})
    partly = replace(whole, cases=(without, *whole.cases[1:]))
    planned = plan(partly, laptop)
    assert planned.job.data.absent_means_unlabelled is False
    assert "[lesion]" in planned.reasons["data.absent_means_unlabelled"]
    assert any("absent_means_unlabelled" in line for line in describe_study(partly))


def test_thick_slices_are_turned_within_their_plane(study, laptop):
    thick = plan(study(spacings=((0.7, 0.7, 8.0),) * 4, shape=(320, 320, 40)), laptop).job
    assert thick.network.dimensions == 3 and thick.augmentation.in_plane
    assert not plan(study(), laptop).job.augmentation.in_plane


@pytest.mark.parametrize(("flat", "orientation"), [(0, "ASR"), (1, "RSA"), (2, "RAS")])
def test_single_slices_are_trained_on_as_slices(study, laptop, flat, orientation):
    shape = tuple(1 if axis == flat else 256 for axis in range(3))
    job = plan(study(shape=shape), laptop).job
    assert (job.network.dimensions, job.preprocessing.orientation) == (2, orientation)
    assert len(job.training.patch_size) == 2
    assert job.augmentation.mirror_axes == (() if flat == 0 else (0,))


def test_small_structures_are_looked_for_more_often(study, laptop):
    fractions = [plan(study(ml=ml), laptop).job.training.foreground_fraction for ml in (0.1, 10.0, 500.0)]
    assert fractions == [0.67, 0.5, 0.33]


@pytest.mark.parametrize("shape", [(35, 50, 36), (300, 300, 300)])
def test_windows_are_as_large_as_patches(study, laptop, shape):
    assert plan(study(shape=shape), laptop, minutes=15.0).job.inference.window_size is None


def test_a_gpu_gets_more_than_a_laptop(study, laptop, card):
    small, large = (plan(study(shape=(300,) * 3), machine).job for machine in (laptop, card))
    assert math.prod(small.training.patch_size) < math.prod(large.training.patch_size)
    assert len(small.network.features) < len(large.network.features)


def test_bfloat16_makes_more_steps_of_the_same_size(study, laptop):
    fast = replace(laptop, learns_in_bfloat16=True)
    few, many = (plan(study(shape=(300,) * 3), machine).job.training for machine in (laptop, fast))
    assert (many.patch_size, many.batch_size) == (few.patch_size, few.batch_size)
    assert many.steps_per_epoch > 1.5 * few.steps_per_epoch


def test_few_patients_make_few_folds(study, laptop):
    spacings = [(1.0, 1.0, 1.0)] * 3
    assert plan(study(spacings=spacings), laptop).job.data.num_folds == 3
    assert plan(study(spacings=spacings[:1]), laptop).job.data.fold == "none"


@pytest.mark.parametrize(
    ("manifest", "name"),
    [
        ("/data/liver/dataset.json", "liver"),
        ("/data/Dataset009_Spleen", "Dataset009_Spleen"),
        ("a/ct.csv", "ct"),
    ],
)
def test_the_experiment_is_called_like_the_study(study, laptop, manifest, name):
    assert plan(study(), laptop, manifest=Path(manifest)).job.tracking.experiment == name


@given(st.integers(1, 500), st.floats(1e-3, 10), st.floats(0, 1000))
def test_validating_takes_a_tenth_of_the_budget_or_happens_once(steps_per_epoch, step_s, validation_s):
    every = pace(steps_per_epoch, step_s, validation_s)["training.validate_every"].value
    between_s = every * steps_per_epoch * step_s
    assert validation_s <= 0.1 * (between_s + validation_s) * (1 + 1e-9) or every == 50
    assert every >= 2


def test_how_often_is_validated_does_not_depend_on_how_busy_the_machine_is():
    assert pace(60, 0.9, 50.0) == pace(60, 9.0, 500.0)


def test_the_study_is_told_with_its_rare_structures(study):
    fingerprint = study(labels={"background": 0, "organ": 1, "never": 2})
    for case in fingerprint.cases:
        del case.structures["never"]
    told = "\n".join(describe_study(fingerprint))
    assert "10 cases of 10 patients, T1, stored as LPS (10)" in told
    assert "organ: 10 ml" in told and "in 10 of 10 cases" in told and "never: in none of 10 cases" in told
