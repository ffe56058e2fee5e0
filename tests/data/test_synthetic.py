"""The synthetic studies are repeatable, valid in geometry, and labelled where the image shows it."""

import hashlib
import json
import sys
from importlib.util import find_spec

import nibabel as nib
import numpy as np
import pytest
import torch

from pipeline.data.synthetic import studies, warps, write_head_study, write_phantom_study
from pipeline.data.synthetic.heads import HEAD_LABELS, Template
from pipeline.errors import ConfigError

needs_template = pytest.mark.skipif(
    find_spec("nilearn") is None, reason="the heads need nilearn (extra demo)"
)


def _read(path):
    image = nib.load(path)
    return np.asanyarray(image.dataobj), image


def _hashes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of one held-out head: the only head that these tests draw from the template."""
    folder = tmp_path_factory.mktemp("heads")
    ready = []
    write_head_study(folder, num_training=0, num_held_out=1, seed=3, on_case=lambda: ready.append(1))
    assert ready == [1]
    return folder


@needs_template
def test_a_head_is_a_full_size_image_and_label_map_on_one_grid(study):
    pixels, image = _read(study / "images/head_01.nii.gz")
    labels, label = _read(study / "references/head_01.nii.gz")
    assert sorted(pixels.shape) == sorted(labels.shape) == [189, 197, 233]
    assert pixels.dtype == np.int16
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(image.affine, label.affine)
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)
    np.testing.assert_allclose(image.header.get_zooms(), 1, atol=1e-5)
    assert set(np.unique(labels)) == set(HEAD_LABELS.values())


@needs_template
def test_a_head_looks_like_its_labels(study):
    pixels, _ = _read(study / "images/head_01.nii.gz")
    labels, _ = _read(study / "references/head_01.nii.gz")
    mean = [pixels[labels == value].mean() for value in range(4)]
    assert mean[1] < mean[2] < mean[3], "fluid is darkest and white matter brightest on T1"
    assert 200 < (labels == 1).sum() / 1000 < 700, "millilitres"
    assert 600 < (labels == 2).sum() / 1000 < 1400
    assert 350 < (labels == 3).sum() / 1000 < 900
    # A threshold half-way between the tissues' means already tells them apart, so a network can learn them.
    brain = labels > 0
    guess = 1 + np.digitize(pixels[brain], [(mean[1] + mean[2]) / 2, (mean[2] + mean[3]) / 2])
    for value in (1, 2, 3):
        is_tissue, is_guess = labels[brain] == value, guess == value
        assert 2 * (is_tissue & is_guess).sum() / (is_tissue.sum() + is_guess.sum()) > 0.85


@needs_template
def test_the_same_study_is_not_written_twice_and_another_replaces_it(study, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in study.rglob("head_*")}
    write_head_study(study, num_training=0, num_held_out=1, seed=3)
    assert before == {path: path.stat().st_mtime_ns for path in study.rglob("head_*")}

    monkeypatch.setattr(studies, "load_template", _tiny_template)
    other = write_head_study(study.parent / "tiny", num_training=2, num_held_out=1, seed=3).parent
    write_head_study(other, num_training=1, num_held_out=1, seed=3)
    assert sorted(str(path.relative_to(other)) for path in other.rglob("head_*")) == [
        "images/head_02.nii.gz",
        "references/head_02.nii.gz",
        "training/images/head_01.nii.gz",
        "training/labels/head_01.nii.gz",
    ]


def _tiny_template():
    """A ball of white matter in grey matter in fluid: the real code on 33x37x31 voxels."""
    shape = (33, 37, 31)
    offset = np.indices(shape).T - (np.array(shape) - 1) / 2
    radius = np.linalg.norm(offset, axis=-1).T.astype(np.float32)
    grey = np.clip(9 - radius, 0, 1) - np.clip(6 - radius, 0, 1)
    maps = np.stack([grey, np.clip(6 - radius, 0, 1), 0 * radius, 11 - radius, 15 - radius])
    return Template(torch.from_numpy(maps.astype(np.float32))[None], np.eye(4))


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(studies, "load_template", _tiny_template)


@pytest.mark.usefixtures("tiny")
def test_a_seed_means_the_same_bytes_and_another_seed_other_heads(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_head_study(tmp_path / name, num_training=2, num_held_out=1, seed=seed)
    first, again, other = (_hashes(tmp_path / name) for name in "abc")
    assert first == again
    heads = [name for name in first if "head_" in name]
    assert len(heads) == 6
    assert not {first[name] for name in heads} & {other[name] for name in heads}
    fluid = {(_read(tmp_path / "a" / name)[0] == 1).sum() for name in heads if "image" not in name}
    assert len(fluid) == 3, "patients differ, not only their orientation"


@pytest.mark.usefixtures("tiny")
def test_a_held_out_head_does_not_depend_on_how_many_there_are(tmp_path):
    write_head_study(tmp_path / "a", num_training=1, num_held_out=1, seed=1)
    write_head_study(tmp_path / "b", num_training=0, num_held_out=3, seed=1)
    assert _hashes(tmp_path / "a/images").items() <= _hashes(tmp_path / "b/images").items()


@pytest.mark.usefixtures("tiny")
def test_heads_are_stored_in_several_orientations_and_listed(tmp_path):
    dataset = write_head_study(tmp_path, num_training=4, num_held_out=1, seed=0)
    listed = json.loads(dataset.read_text())
    assert listed["labels"] == {str(value): name for name, value in HEAD_LABELS.items()}
    images = [_read(tmp_path / pair["image"])[1] for pair in listed["training"]]
    labels = [_read(tmp_path / pair["label"])[1] for pair in listed["training"]]
    assert ["".join(nib.aff2axcodes(image.affine)) for image in images] == ["RAS", "LPS", "PIR", "RAS"]
    assert np.abs(images[3].affine[:3, :3]).min() > 0, "the fourth is oblique"
    for image, label in zip(images, labels, strict=True):
        assert image.shape == label.shape
        np.testing.assert_array_equal(image.affine, label.affine)
        assert np.linalg.norm(image.affine[:3, :3], axis=0) == pytest.approx(1, abs=1e-5)
    assert all((tmp_path / image).exists() for image in listed["test"])
    assert not set(listed["test"]) & {pair["image"] for pair in listed["training"]}


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", ["images/head_01.nii.gz", "dataset.json"])
def test_somebody_elses_study_is_left_alone(tmp_path, name):
    foreign = tmp_path / name
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_bytes(b"precious")
    with pytest.raises(ConfigError, match="choose another folder"):
        write_head_study(tmp_path, num_training=1, num_held_out=1, seed=0)
    assert foreign.read_bytes() == b"precious"


def test_without_nilearn_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nilearn.datasets", None)
    with pytest.raises(ConfigError, match=r'pip install "clinseg\[demo\]"'):
        write_head_study(tmp_path, num_training=1, num_held_out=0, seed=0)


def _jacobian(coordinates):
    return np.linalg.det(np.stack([np.stack(np.gradient(axis), axis=-1) for axis in coordinates], axis=-2))


@pytest.mark.parametrize("seed", range(3))
def test_a_deformation_never_folds(seed):
    jacobian = _jacobian(warps.draw_coordinates(np.random.default_rng(seed), (65, 77, 63)))
    assert jacobian.min() > 0.1
    assert jacobian.max() < 4
    assert jacobian.std() > 0.02, "patients differ by more than an affine"


def test_the_largest_displacements_that_can_be_drawn_do_not_fold():
    shape, num_knots = (65, 65, 65), 7
    limit = warps._LARGEST_DISPLACEMENT * 64 / (num_knots - 3)
    signs = np.random.default_rng(0).choice((-1.0, 1.0), (3, *(num_knots,) * 3))
    jacobian = _jacobian(np.indices(shape) + [warps.smooth_field(limit * sign, shape) for sign in signs])
    assert jacobian.min() > 0


def test_a_smooth_field_reproduces_constants_and_slopes():
    shape = (20, 30, 25)
    np.testing.assert_allclose(warps.smooth_field(np.full((4, 5, 6), 2.5), shape), 2.5, rtol=1e-5)
    ramp = np.broadcast_to(np.arange(-1, 4.0)[None, :, None], (4, 5, 6))
    expected = np.broadcast_to(np.linspace(0, 2, 30)[None, :, None], shape)
    np.testing.assert_allclose(warps.smooth_field(ramp, shape), expected, atol=1e-5)


@pytest.mark.parametrize("num_channels", [1, 3])
def test_phantoms_are_repeatable_and_show_their_labels(tmp_path, num_channels):
    for name in ("a", "b"):
        write_phantom_study(tmp_path / name, num_cases=3, num_channels=num_channels, seed=5)
    assert _hashes(tmp_path / "a") == _hashes(tmp_path / "b")
    listed = json.loads((tmp_path / "a/dataset.json").read_text())
    assert len(listed["modality"]) == num_channels
    assert len(listed["training"]) == 3
    for pair in listed["training"]:
        pixels, image = _read(tmp_path / "a" / pair["image"])
        labels, label = _read(tmp_path / "a" / pair["label"])
        assert labels.shape == pixels.shape[:3] == (24, 28, 20)
        assert pixels.shape[3:] == ((num_channels,) if num_channels > 1 else ())
        np.testing.assert_array_equal(image.affine, np.eye(4))
        np.testing.assert_array_equal(label.affine, np.eye(4))
        assert set(np.unique(labels)) == {0, 1, 2}
        for channel in pixels.reshape(-1, num_channels).T:
            means = [channel[labels.ravel() == value].mean() for value in range(3)]
            assert np.diff(sorted(means)).min() > 100, "structures differ by several deviations of the noise"


def test_a_phantom_fits_the_shape_asked_for(tmp_path):
    write_phantom_study(tmp_path, num_cases=1, shape=(16, 40, 12), seed=1)
    labels, _ = _read(tmp_path / "labelsTr/phantom_01.nii.gz")
    assert labels.shape == (16, 40, 12)
    border = np.ones(labels.shape, dtype=bool)
    border[1:-1, 1:-1, 1:-1] = False
    assert not labels[border].any(), "the ellipsoid lies inside the image"
