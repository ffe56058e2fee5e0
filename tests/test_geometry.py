"""No file comes in or goes out on a grid that does not pass the door, and left stays left on every path."""

from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813 - its customary name
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import from_matvec
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy import ndimage

from pipeline.config import InferenceSection
from pipeline.data.images import read_image
from pipeline.data.nifti import Reading
from pipeline.errors import InputError
from pipeline.export.nifti import write_image, write_label_map, write_map
from pipeline.export.probabilities import write_probabilities
from pipeline.inference.labelling import Labeller
from pipeline.labels import LabelContract
from pipeline.networks.blocks import Pointwise
from pipeline.volume import Grid, Volume, measure_volumes
from transforms.laterality import Laterality
from transforms.postprocessing import Decision, label_map_on_grid
from transforms.preprocessing import Preprocessing, preprocess

CPU = torch.device("cpu")
SHAPE = (4, 5, 3)
DIRECTIONS = [
    np.eye(3)[:, order] * signs for order in permutations(range(3)) for signs in product((1, -1), repeat=3)
]


# The door.

BAD = {
    "shear": np.array([[1, 0.1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
    "spacing-range": np.diag([0.001, 0.001, 0.001, 1]),
    "anisotropy": np.diag([0.02, 1, 50, 1]),
    "affine-singular": np.array([[1, 1, 0, 0], [0, 1e-7, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
}
WRITERS = {
    "label map": lambda path, grid: write_label_map(path, np.zeros(SHAPE, np.uint8), grid, {"background": 0}),
    "map": lambda path, grid: write_map(path, np.zeros(SHAPE, np.float32), grid, {}),
    "image": lambda path, grid: write_image(path, np.zeros(SHAPE, np.int16), grid, {}),
    "probabilities": lambda path, grid: write_probabilities(path, grid, ["one"]).__enter__(),
}


@pytest.mark.parametrize("rule", BAD)
def test_no_reader_gives_and_no_writer_takes_a_grid_that_nobody_can_trust(rule, tmp_path):
    volume = Volume(np.zeros(SHAPE, np.uint8), Grid(SHAPE, BAD[rule]))
    with pytest.raises(InputError) as caught:
        Reading((volume,))
    assert [fault.rule for fault in caught.value.faults] == [rule]
    for write in WRITERS.values():
        with pytest.raises(InputError, match=rule):
            write(tmp_path / "file.nii", volume.grid)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (2, 1)], ids=str)
def test_a_form_that_places_the_image_elsewhere_is_refused(codes, tmp_path):
    moved = from_matvec(np.eye(3), (0, 0, 0.5))
    forms = {"sform": moved if codes[0] else None, "qform": None if codes[0] else moved}
    grid = Grid(SHAPE, np.eye(4), sform_code=codes[0], qform_code=codes[1], **forms)
    with pytest.raises(InputError, match="form-contradicts-affine"):
        Reading((Volume(np.zeros(SHAPE, np.uint8), grid),))
    for write in WRITERS.values():
        with pytest.raises(InputError, match="form-contradicts-affine"):
            write(tmp_path / "file.nii", grid)


def test_a_qform_that_is_not_in_force_may_differ():
    grid = Grid(SHAPE, np.eye(4), qform=np.diag([2.0, 2, 2, 1]), qform_code=1)
    assert Reading((Volume(np.zeros(SHAPE, np.uint8), grid),)).volumes[0].grid is grid


@pytest.mark.parametrize("noise", [1e-7, 1e-5, 3e-4])
def test_noise_in_an_affine_is_let_in_and_kept(noise, tmp_path):
    generator = np.random.default_rng(0)
    for axes in DIRECTIONS:
        affine = from_matvec(axes * (1, 1, 10), (-80, 70, 3))
        affine[:3] += generator.uniform(-noise, noise, (3, 4))
        nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.int16), affine), tmp_path / "scan.nii")
        (volume,) = read_image(tmp_path / "scan.nii")
        write_label_map(tmp_path / "mask.nii", np.zeros(SHAPE, np.uint8), volume.grid, {"background": 0})
        mask, scan = (nib.load(tmp_path / name) for name in ("mask.nii", "scan.nii"))
        assert np.array_equal(mask.affine, scan.affine)


# There and back.


def balls(shape, spacing, seed):
    """Labels of two balls and a box, in voxels of this spacing."""
    generator = np.random.default_rng(seed)
    points = np.stack(np.indices(shape), axis=-1) * spacing
    extent = np.array(shape) * spacing
    labels = np.zeros(shape, np.uint8)
    labels[(np.abs(points / extent - generator.uniform(0.2, 0.8, 3)) < 0.2).all(axis=-1)] = 3
    for value in (1, 2):
        centre = generator.uniform(0.2, 0.8, 3) * extent
        labels[np.linalg.norm(points - centre, axis=-1) < 0.25 * extent.min()] = value
    return labels


def there_and_back(labels, affine, spacing, orientation):
    """To the network's grid and back, as a network does that answers with the label map it was given."""
    chain = Preprocessing(orientation=orientation, spacing=spacing, normalisation="none")
    prepared = preprocess(chain, [labels], affine, labels)
    scores = torch.nn.functional.one_hot(prepared.label.long(), 4).permute(3, 0, 1, 2).float()
    decision = Decision(tuple(range(4)))
    return label_map_on_grid(scores, prepared.affine, labels.shape, affine, decision)


@settings(max_examples=40, deadline=None)
@given(
    axes=st.sampled_from(DIRECTIONS),
    angles=st.tuples(*[st.floats(-0.5, 0.5)] * 3),
    spacing=st.tuples(*[st.sampled_from([1.0, 1.3, 2.5, 4.0, 10.0])] * 3),
    target=st.tuples(*[st.sampled_from([1.0, 1.5, 3.0, 7.0])] * 3),
    orientation=st.sampled_from(["RAS", "LPS", "PIR", "SAL"]),
    seed=st.integers(0, 99),
)
def test_a_label_map_that_goes_there_and_back_moves_by_half_a_voxel_at_most(
    axes, angles, spacing, target, orientation, seed
):
    labels = balls((13, 11, 12), spacing, seed)
    affine = from_matvec(nib.eulerangles.euler2mat(*angles) @ axes * spacing, (-50, 20, 7))
    back = there_and_back(labels, affine, target, orientation)
    # Both grids cut space into voxels, so that a border is where it is to half a voxel of each of them.
    order = [int(np.abs(axis).argmax()) for axis in np.linalg.inv(affine[:3, :3] / spacing)]
    letters = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
    along = {letters[letter]: mm for letter, mm in zip(orientation, target, strict=True)}
    net = np.array([along[axis] for axis in order])
    reach = np.linalg.norm(net) / 2 + np.linalg.norm(spacing) / 2 + 1e-3
    for value in range(4):
        changed = (back == value) & (labels != value)
        if changed.any():
            away = ndimage.distance_transform_edt(labels != value, sampling=spacing)
            assert away[changed].max() <= reach


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PIR", "SAL"])
def test_without_resampling_no_voxel_changes_in_any_orientation(orientation):
    spacing = (1.0, 2.5, 10.0)
    labels = balls((23, 17, 19), spacing, 1)
    for axes in DIRECTIONS:
        affine = from_matvec(axes * spacing, (-50, 20, 7))
        assert np.array_equal(there_and_back(labels, affine, None, orientation), labels)


# Left stays left.

SIDES = {"background": 0, "left": 1, "right": 2}


class Sides(torch.nn.Module):
    """Answers what is bright, and on which side of its window, the whole body: in RAS, left comes first."""

    def __init__(self):
        super().__init__()
        self.head = Pointwise(3, 3)

    def forward(self, windows):
        bright = (windows > 0.5).float()
        middle = windows.shape[2] // 2
        left, right = bright.clone(), bright.clone()
        left[:, :, middle:] = 0
        right[:, :, :middle] = 0
        return torch.cat([torch.full_like(bright, 0.5), left, right], dim=1)


def body(axes, spacing=(2.0, 2.0, 2.0), size=16):
    """A body with an organ at the patient's left, stored along `axes`, and its affine."""
    extent = np.array([size * 2.0, size * 2.0, size * 2.0])
    shape = tuple(round(mm) for mm in extent / np.array(spacing))
    centre = (np.array(shape) - 1) / 2
    affine = from_matvec(axes * spacing, np.zeros(3))
    affine[:3, 3] = -affine[:3, :3] @ centre + (3, -40, 25)
    points = np.stack(np.indices(shape), axis=-1) @ affine[:3, :3].T + affine[:3, 3] - (3, -40, 25)
    organ = (np.abs(points - (-9, 4, -5)) < 4.5).all(axis=-1)
    return organ.astype(np.int16), affine


def label(path, flips):
    """What `predict` does between reading and writing, with a network that is known."""
    (volume,) = read_image(path)
    prepared = preprocess(Preprocessing(normalisation="none"), [volume.array], volume.grid.affine)
    labeller = Labeller(
        [Sides()],
        LabelContract(SIDES),
        InferenceSection(),
        tuple(prepared.image.shape[1:]),
        CPU,
        mixed_precision=False,
        flipped_axes=(0, 1, 2) if flips else (),
        laterality=Laterality(0, (0, 2, 1)),
    )
    return labeller.label(prepared, volume.grid).array, volume


def assert_left_is_left(path):
    """As an independent reader sees it, in LPS."""
    image = sitk.ReadImage(str(path))
    found = sitk.GetArrayFromImage(image).T
    places = np.argwhere(found == SIDES["left"])
    assert len(places) > 20 and not (found == SIDES["right"]).any()
    centre = image.TransformContinuousIndexToPhysicalPoint([float(n) for n in places.mean(axis=0)])
    assert np.allclose(centre, (9 - 3, -4 + 40, -5 + 25), atol=1.1)


@pytest.mark.parametrize("flips", [False, True])
def test_left_stays_left_through_every_stored_orientation(flips, tmp_path):
    for number, axes in enumerate(DIRECTIONS[:: 4 if flips else 1]):
        organ, affine = body(axes)
        image = nib.Nifti1Image(organ, None)
        image.header.set_zooms((2, 2, 2))
        if number % 2:
            image.set_sform(affine, 1)
        else:
            image.set_qform(affine, 1)
        nib.save(image, tmp_path / f"{number}.nii")
        found, volume = label(tmp_path / f"{number}.nii", flips)
        write_label_map(tmp_path / "mask.nii", found, volume.grid, SIDES)
        assert_left_is_left(tmp_path / "mask.nii")


def save_series(folder: Path, organ, affine, is_reversed):
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    folder.mkdir()
    series = generate_uid()
    for k in range(organ.shape[2]):
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.SeriesInstanceUID, dataset.Modality = series, "CT"
        dataset.ImageOrientationPatient = [f"{v:.9f}" for v in (lps[:3, :2] / spacing[:2]).T.ravel()]
        dataset.ImagePositionPatient = [f"{v:.6f}" for v in (lps @ (0, 0, k, 1))[:3]]
        dataset.PixelSpacing = [spacing[1], spacing[0]]
        dataset.Columns, dataset.Rows = organ.shape[:2]
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
        dataset.PixelRepresentation, dataset.SamplesPerPixel = 1, 1
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.PixelData = np.ascontiguousarray(organ[:, :, k].T).tobytes()
        number = organ.shape[2] - k if is_reversed else k
        dataset.save_as(folder / f"{number:03d}.dcm", enforce_file_format=True)


@pytest.mark.parametrize("flips", [False, True])
def test_left_stays_left_from_a_dicom_series_of_any_orientation(flips, tmp_path):
    for number, axes in enumerate(DIRECTIONS[::4]):
        organ, affine = body(axes, (2.0, 2.0, 4.0))
        save_series(tmp_path / f"{number}", organ, affine, is_reversed=number % 2)
        found, volume = label(tmp_path / f"{number}", flips)
        write_label_map(tmp_path / "mask.nii.gz", found, volume.grid, SIDES)
        assert_left_is_left(tmp_path / "mask.nii.gz")


def test_a_region_may_unite_values_that_no_mask_of_it_holds():
    grid = Grid((2, 3, 4), np.diag([1.0, 2.0, 0.5, 1.0]))
    mask = np.ones(grid.shape, dtype=np.uint8)  # a region is written with its first value
    assert measure_volumes(mask, grid, {"whole": (1, 300)}) == {"whole": pytest.approx(24 / 1000)}
