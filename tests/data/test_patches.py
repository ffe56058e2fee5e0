"""The cache never serves what is stale, and a patch depends on nothing but its seed and number."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from pipeline.config import DataSection
from pipeline.data.batches import Batch, draw_ahead
from pipeline.data.cases import read_manifest
from pipeline.data.chunks import Chunked
from pipeline.data.patches import PatchSampler
from pipeline.data.prepared_cases import hash_data, prepare_cases
from pipeline.data.synthetic import write_phantom_study
from pipeline.errors import InputError
from transforms.preprocessing import Preprocessing


@pytest.fixture
def section(tmp_path):
    manifest = write_phantom_study(tmp_path / "study", num_cases=4)
    return DataSection(manifest=manifest, cache_dir=tmp_path / "cache")


def prepare(section, settings=None, labelled=None, num_channels=1):
    study = read_manifest(section)
    cases = [replace(case, labelled=labelled) for case in study.cases]
    return prepare_cases(cases, study.contract, num_channels, settings or Preprocessing(), section)


def sampler(cases, **changes):
    settings = {"patch_size": (8, 8, 8), "source_size": (12, 12, 12), "batch_size": 3}
    return PatchSampler(cases, **(settings | {"foreground_fraction": 0.5, "seed": 7} | changes))


def test_a_second_look_maps_the_same_voxels_and_writes_nothing(section):
    first = prepare(section)
    written = {path: path.stat().st_mtime_ns for path in section.cache_dir.iterdir()}
    second = prepare(section)
    assert {path: path.stat().st_mtime_ns for path in section.cache_dir.iterdir()} == written
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.image, b.image) and torch.equal(a.label, b.label)
        assert np.array_equal(a.affine, b.affine)
    assert hash_data(first) == hash_data(second)


def test_a_changed_file_or_chain_is_prepared_anew(section):
    first = prepare(section)
    path = first[0].case.images[0]
    old = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(old.dataobj)[::-1].copy(), old.affine), path)
    changed = prepare(section)
    assert torch.equal(changed[0].image, first[0].image.flip(1)) and hash_data(changed) != hash_data(first)
    coarse = prepare(section, Preprocessing(spacing=(2.0, 2.0, 2.0)))
    assert coarse[0].image.shape != changed[0].image.shape


def test_another_number_of_channels_is_refused_however_often_the_case_was_prepared(section):
    for path in [case.images[0] for case in read_manifest(section).cases]:
        old = nib.load(path)
        both = np.stack([np.asarray(old.dataobj)] * 2, axis=-1)
        nib.save(nib.Nifti1Image(both, old.affine), path)
    assert all(prepared.image.shape[0] == 2 for prepared in prepare(section, num_channels=2))
    for _ in range(2):
        with pytest.raises(InputError, match="1 channels are declared, the images hold 2") as caught:
            prepare(section)
        assert len(caught.value.faults) == 4


def test_a_damaged_cache_file_is_made_anew(section):
    first = [(prepared.image.clone(), prepared.label.clone()) for prepared in prepare(section)]
    for path in section.cache_dir.glob("*.safetensors"):
        content = bytearray(path.read_bytes())
        content[-100] ^= 1  # still a valid file, with another voxel
        path.write_bytes(content)
    for (image, label), prepared in zip(first, prepare(section), strict=True):
        assert torch.equal(image, prepared.image) and torch.equal(label, prepared.label)


def test_coordinates_are_where_the_labels_are(section):
    for prepared in prepare(section):
        assert set(prepared.coordinates) == {1, 2}
        for label, voxels in prepared.coordinates.items():
            assert (prepared.label[0][tuple(voxels.long().T)] == label).all()


def test_faults_of_all_cases_come_together(section):
    cases = read_manifest(section).cases
    for case in cases[:2]:
        case.images[0].write_bytes(b"no image")
    with pytest.raises(InputError) as caught:
        prepare(section)
    assert len(caught.value.faults) == 2


def test_patches_of_large_volumes_are_those_of_plain_ones(section, monkeypatch):
    plain = prepare(section)
    monkeypatch.setattr("pipeline.data.chunks.LARGE", 0)
    chunked = prepare(section.model_copy(update={"cache_dir": section.cache_dir / "chunks"}))
    assert all(isinstance(part, Chunked) for case in chunked for part in (case.image, case.label))
    assert hash_data(plain) == hash_data(chunked)
    for step in range(4):
        expected, found = sampler(plain).draw(step).tensors, sampler(chunked).draw(step).tensors
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_drawing_ahead_leaves_the_cores_to_the_network():
    found = []

    def draw(step):
        found.append(torch.get_num_threads())
        return Batch({}, (step,))

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        batches = draw_ahead(draw, 0)
        assert [next(batches).seeds for _ in range(3)] == [(0,), (1,), (2,)]
        batches.close()
        assert set(found) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_step_has_the_same_patches_wherever_training_starts(section):
    cases = prepare(section)
    straight = sampler(cases).iterate(0)
    expected = [next(straight) for _ in range(5)]
    resumed = sampler(cases).iterate(3)
    for batch in expected[3:]:
        again = next(resumed)
        assert again.seeds == batch.seeds
        assert all(torch.equal(again.tensors[key], batch.tensors[key]) for key in batch.tensors)
    straight.close()
    resumed.close()


def test_every_case_comes_once_in_a_pass(section):
    cases = prepare(section)
    marked = [
        type(c)(c.case, c.image * 0 + n, c.label, c.coordinates, c.affine, "") for n, c in enumerate(cases)
    ]
    draws = sampler(marked, batch_size=1)
    means = [round(float(draws.draw(step).tensors["image"].max())) for step in range(8)]
    assert sorted(means[:4]) == sorted(means[4:]) == [0, 1, 2, 3]


def test_foreground_patches_hold_foreground_and_image_matches_label(section):
    cases = prepare(section)
    draws = sampler(cases, foreground_fraction=1.0, source_size=(8, 8, 8))
    for step in range(10):
        batch = draws.draw(step)
        assert (batch.tensors["label"].flatten(1) > 0).any(dim=1).all()
    first = draws.draw(0).tensors
    volume = next(
        c
        for c in cases
        if (c.image.unfold(1, 8, 1).unfold(2, 8, 1).unfold(3, 8, 1) == first["image"][0, 0])
        .flatten(-3)
        .all(-1)
        .any()
    )
    places = (volume.image.unfold(1, 8, 1).unfold(2, 8, 1).unfold(3, 8, 1) == first["image"][0, 0]).flatten(
        -3
    )
    _, i, j, k = places.all(-1).nonzero()[0].tolist()
    assert torch.equal(volume.label[0, i : i + 8, j : j + 8, k : k + 8], first["label"][0])


def test_2d_patches_are_slices(section):
    draws = sampler(prepare(section), patch_size=(8, 8), source_size=(10, 10))
    batch = draws.draw(0)
    assert batch.tensors["image"].shape == (3, 1, 10, 10) and batch.tensors["label"].shape == (3, 10, 10)


def rewrite(path, change):
    """Changes the voxels of a stored label map."""
    stored = nib.load(path)
    array = np.asarray(stored.dataobj).copy()
    change(array)
    nib.save(nib.Nifti1Image(array, stored.affine), path)


@pytest.mark.parametrize("ignore_value", [7, 300])
def test_ignored_voxels_have_the_index_behind_the_labels_and_are_no_foreground(section, ignore_value):
    labels = {"background": 0, "shell": 1, "core": 200}

    def change(array):
        array[array == 2] = 200
        array[:, :, :10][array[:, :, :10] == 1] = 7

    for case in read_manifest(section).cases:
        rewrite(case.label, change)
        if ignore_value == 300:
            stored = nib.load(case.label)
            array = np.asarray(stored.dataobj).astype(np.uint16)
            array[array == 7] = 300
            nib.save(nib.Nifti1Image(array, stored.affine), case.label)
    section = section.model_copy(update={"labels": labels, "ignore_value": ignore_value})
    for prepared in prepare(section):
        stored = np.asarray(nib.load(prepared.case.label).dataobj)
        assert np.array_equal(prepared.label[0].numpy() == 3, stored == ignore_value)
        assert np.array_equal(prepared.label[0].numpy() == 2, stored == 200)
        assert set(prepared.coordinates) == {1, 2}


def test_a_structure_lost_on_a_coarse_grid_is_labelled_all_the_same(section):
    """Whether it was drawn is asked of the label map as stored."""
    first, second = read_manifest(section).cases[:2]

    def leave_one_voxel(array):
        array[array == 2] = 1
        array[12, 14, 10] = 2

    rewrite(first.label, leave_one_voxel)
    rewrite(second.label, lambda array: np.putmask(array, array == 2, 1))
    section = section.model_copy(update={"absent_means_unlabelled": ("core",)})
    coarse = prepare(section, Preprocessing(spacing=(5.0, 5.0, 5.0)))
    assert not (coarse[0].label == 2).any()
    assert [prepared.labelled for prepared in coarse] == [None, ("shell",), None, None]
    drawn = [sampler(coarse, batch_size=4).draw(step).labelled for step in range(3)]
    assert all(sorted(labelled, key=str) == [("shell",), None, None, None] for labelled in drawn)


def test_a_manifest_that_contradicts_a_cached_case_is_refused(section):
    whole = prepare(section)
    with pytest.raises(InputError, match="core, which") as caught:
        prepare(section, labelled=("shell",))
    assert len(caught.value.faults) == 4
    for case in read_manifest(section).cases:
        rewrite(case.label, lambda array: np.putmask(array, array == 2, 0))
    partly = prepare(section, labelled=("shell",))
    assert {prepared.labelled for prepared in partly} == {("shell",)}
    assert hash_data(partly) != hash_data(prepare(section)) != hash_data(whole)


def test_the_shares_of_several_processes_are_the_samples_of_one(section):
    cases = prepare(section)
    whole = sampler(cases, batch_size=6)
    shares = [sampler(cases, batch_size=2, share=(rank, 3)) for rank in range(3)]
    for step in range(3):
        parts = [share.draw(step) for share in shares]
        assert sum((part.seeds for part in parts), ()) == whole.draw(step).seeds
        images = torch.cat([part.tensors["image"] for part in parts])
        assert torch.equal(images, whole.draw(step).tensors["image"])
