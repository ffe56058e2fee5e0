"""A folder is sorted into series and stacks, the one that is meant is found by rule, the rest is told."""

import io
import shutil
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)
from scipy.ndimage import map_coordinates

from pipeline.data.dicom import SeriesRule, list_series, pixels, read_series, series_hash
from pipeline.data.dicom.headers import read_header
from pipeline.errors import FaultError, InputError

ALONG = np.array([[1.0, 0, 0], [0, 1.0, 0]])
OBLIQUE = np.array([[0.9, 0.3, np.sqrt(0.1)], [-0.3 / np.sqrt(0.9), 0.9 / np.sqrt(0.9), 0.0]])
TESTS = Path(pydicom.__file__).parent / "data/test_files"


def ramp(points):
    """Something linear in LPS millimetres, so that linear interpolation gives it back exactly."""
    return 300 + points @ np.array([0.7, -0.45, 1.3])


def image(size=(12, 9), spacing=(0.8, 1.5), orientation=ALONG, position=(0.0, 0, 0), value=ramp, **tags):
    """One slice whose pixels hold `value` of their place, to 1/1024."""
    columns, rows = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    points = np.asarray(position) + columns[..., None] * spacing[0] * orientation[0]
    points = points + rows[..., None] * spacing[1] * orientation[1]
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID = "1.2.3"
    dataset.StudyInstanceUID = "1.2"
    dataset.Modality = "CT"
    dataset.ImageOrientationPatient = [f"{cosine:.12f}" for cosine in orientation.ravel()]
    dataset.ImagePositionPatient = [f"{mm:.9f}" for mm in position]
    dataset.PixelSpacing = [spacing[1], spacing[0]]
    dataset.SliceThickness = 99  # never looked at
    dataset.Columns, dataset.Rows = size
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 32, 32, 31, 1
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.RescaleSlope, dataset.RescaleIntercept = 2**-10, 0
    dataset.PixelData = np.round(value(points) * 1024).astype(np.int32).tobytes()
    for name, content in tags.items():
        setattr(dataset, name, content)
    return dataset


def stack(depths, orientation=ALONG, shift=(0.0, 0, 0), **tags):
    """Slices at these depths along their normal; `shift` moves each per millimetre of depth."""
    normal = np.cross(*orientation)
    return [
        image(orientation=orientation, position=depth * (normal + np.asarray(shift)), **tags)
        for depth in depths
    ]


def save(folder, datasets, prefix="s"):
    folder.mkdir(parents=True, exist_ok=True)
    for number, dataset in enumerate(datasets):
        dataset.save_as(folder / f"{prefix}{number}.dcm", enforce_file_format=True)
    return folder


def refused(path, **rule):
    with pytest.raises(InputError) as caught:
        read_series(path, SeriesRule(**rule))
    return {fault.rule: fault.message for fault in caught.value.faults}


def read(path, **rule):
    return read_series(path, SeriesRule(**rule)).volumes[0]


def true_ramp(volume):
    """What the ramp is at every voxel."""
    index = np.stack(np.meshgrid(*map(np.arange, volume.grid.shape), indexing="ij"), axis=-1)
    points = index @ volume.grid.affine[:3, :3].T + volume.grid.affine[:3, 3]
    return ramp(points * (-1, -1, 1))


def sampled(volume, dataset):
    """The volume and the ramp where the inner pixels of a slice lie."""
    column, row = np.meshgrid(np.arange(2, dataset.Columns - 2), np.arange(2, dataset.Rows - 2))
    along_row, along_column = np.reshape(np.array(dataset.ImageOrientationPatient, dtype=float), (2, 3))
    points = np.array(dataset.ImagePositionPatient, dtype=float)
    points = points + column[..., None] * along_row * dataset.PixelSpacing[1]
    points = points + row[..., None] * along_column * dataset.PixelSpacing[0]
    inverse = np.linalg.inv(volume.grid.affine)
    index = (points * (-1, -1, 1)) @ inverse[:3, :3].T + inverse[:3, 3]
    assert (index > -1e-6).all() and (index < np.array(volume.grid.shape) - 1 + 1e-6).all()
    index = np.moveaxis(np.clip(index, 0, np.array(volume.grid.shape) - 1), -1, 0)
    return map_coordinates(volume.array, index, order=1), ramp(points)


def one_of_each(folder):
    """A tree with two volumes, a scout of one slice, and a report without pixels."""
    save(folder / "a", stack([0, 2, 4], SeriesDescription="T1 post", SeriesNumber=2))
    save(
        folder / "a",
        stack([0, 3, 6, 9], SeriesInstanceUID="1.4", SeriesDescription="T1", SeriesNumber=3),
        "t",
    )
    save(folder / "b/c", stack([0], SeriesInstanceUID="1.5", SeriesDescription="Scout", SeriesNumber=1))
    report = image(SeriesInstanceUID="1.6", Modality="SR")
    for name in ("PixelData", "Rows", "Columns"):
        delattr(report, name)
    save(folder / "b", [report], "report")
    return folder


def test_a_tree_is_sorted_into_series_with_the_reason_of_what_is_no_volume(tmp_path):
    found = list_series(one_of_each(tmp_path))
    told = {
        s.description: (s.number, s.modality, len(s.frames), s.step, [p[0] for p in s.problems])
        for s in found
    }
    assert told == {
        "": ("", "SR", 0, None, ["missing-tag"]),
        "Scout": ("1", "CT", 1, None, ["too-few-slices"]),
        "T1 post": ("2", "CT", 3, 2.0, []),
        "T1": ("3", "CT", 4, 3.0, []),
    }
    assert len({s.id for s in found}) == 4


@pytest.mark.parametrize("pattern", ["3", "T1", "t1", "T1 post", "*post", "post", "t1?p*"])
def test_a_series_is_chosen_by_number_or_description(pattern, tmp_path):
    volume = read(one_of_each(tmp_path), pattern=pattern)
    assert volume.grid.shape[2] == (4 if pattern in ("3", "T1", "t1") else 3)


def test_a_series_is_chosen_by_its_short_id(tmp_path):
    for found in list_series(one_of_each(tmp_path)):
        if not found.problems:
            assert read(tmp_path, pattern=found.id).grid.shape[2] == len(found.frames)


def test_an_ambiguous_choice_lists_the_candidates_and_no_others(tmp_path):
    for rule in ({}, {"pattern": "*T1*"}):
        (message,) = refused(one_of_each(tmp_path), **rule).values()
        assert "T1 post" in message and "4 x 12 x 9" in message and "Scout" not in message


def test_a_pattern_that_fits_nothing_lists_everything(tmp_path):
    (message,) = refused(one_of_each(tmp_path), pattern="FLAIR").values()
    assert "Scout" in message and "T1 post" in message


def test_what_is_no_image_does_not_stand_in_the_way(tmp_path):
    one_of_each(tmp_path)
    shutil.rmtree(tmp_path / "b/c")
    for file in (tmp_path / "a").glob("t*"):
        file.unlink()
    assert read(tmp_path).grid.shape == (12, 9, 3)


def test_a_damaged_series_is_not_passed_over_for_a_sound_one(tmp_path):
    one_of_each(tmp_path)
    (tmp_path / "a/s1.dcm").unlink()
    (tmp_path / "a/s2.dcm").unlink()
    save(tmp_path / "a", stack([2, 3.1], SeriesDescription="T1 post"), "u")
    assert "several-series" in refused(tmp_path)


def test_a_dicomdir_stands_for_the_files_it_names():
    medium = TESTS / "dicomdirtests"
    by_name = {s.id: len(s.frames) for s in list_series(medium / "DICOMDIR")}
    by_tree = {s.id: len(s.frames) for s in list_series(medium)}
    assert by_name.items() <= by_tree.items() and len(by_name) == 24
    assert read(medium / "DICOMDIR", pattern="SmartScore*").grid.spacing[2] == pytest.approx(2.5)


def test_a_dicomdir_names_what_is_missing(tmp_path):
    medium = Path(shutil.copytree(TESTS / "dicomdirtests", tmp_path / "medium"))
    shutil.rmtree(medium / "98892001")
    assert "7 files that are not there" in refused(medium / "DICOMDIR")["dicomdir"]


@pytest.mark.parametrize("name", [["..", "passwd"], ["A", "../../passwd"], "/etc/passwd"], ids=str)
def test_a_dicomdir_leads_to_no_file_outside(name, tmp_path):
    medium = Path(shutil.copytree(TESTS / "dicomdirtests", tmp_path / "medium"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = pydicom.dcmread(medium / "DICOMDIR")
        for record in content.DirectoryRecordSequence:
            if "ReferencedFileID" in record:
                record.ReferencedFileID = name
        content.save_as(medium / "DICOMDIR")
    assert "outside of its folder" in refused(medium / "DICOMDIR")["dicomdir"]


@pytest.mark.parametrize("orientation", [ALONG, OBLIQUE], ids=["axial", "oblique"])
@pytest.mark.parametrize("tag, values", [
    ("TemporalPositionIdentifier", (1, 2, 3)),
    ("EchoTime", (4.6, 11.5, 20)),
    ("AcquisitionNumber", (1, 2, 10)),
    ("ImageType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"], ["DERIVED", "PRIMARY", "W"])),
    ("AcquisitionTime", ("101010", "101110", "101210")),
])  # fmt: skip
def test_times_and_echoes_of_one_series_are_told_apart(tag, values, orientation, tmp_path):
    for number, value in enumerate(values):
        slices = stack(
            [0, 2, 4, 6], orientation, value=lambda p, n=number: ramp(p) + 1000 * n, **{tag: value}
        )
        for index, dataset in enumerate(slices):
            dataset.TriggerTime = 10 * index + number  # changes with every image: tells nothing apart
        save(tmp_path, slices, f"{number}-")
    found = list_series(tmp_path)
    assert [len(s.frames) for s in found] == [4, 4, 4] and not any(s.problems for s in found)
    assert "several-stacks" in refused(tmp_path)
    means = sorted(read(tmp_path, pattern=s.id).array.mean() for s in found)
    assert np.allclose(np.diff(means), 1000, atol=0.01)
    assert len({series_hash(tmp_path, SeriesRule(s.id)) for s in found}) == 3


def test_slabs_of_one_acquisition_each_are_one_volume(tmp_path):
    save(tmp_path, stack([0, 2, 4], AcquisitionNumber=1) + stack([6, 8, 10], AcquisitionNumber=2))
    assert read(tmp_path).grid.shape[2] == 6


def test_stacks_of_other_orientations_are_told_apart(tmp_path):
    save(tmp_path, stack([0, 2, 4]) + stack([0, 2], OBLIQUE))
    assert "2 x 12 x 9" in refused(tmp_path)["slice-orientation"]
    assert read(tmp_path, pattern=list_series(tmp_path)[1].id).grid.shape[2] == 2


def test_a_stray_slice_of_another_size_is_named(tmp_path):
    save(tmp_path, [*stack([0, 2, 4]), image(size=(12, 10), position=(0, 0, 6))])
    assert "s3.dcm" in refused(tmp_path)["slice-size"]


def test_an_unreadable_file_counts_only_where_the_series_lies(tmp_path):
    save(tmp_path / "a", stack([0, 2, 4]))
    save(tmp_path / "b", [])
    (tmp_path / "b/odd.dcm").write_bytes(b"odd" * 100)
    assert read(tmp_path).grid.shape[2] == 3
    (tmp_path / "a/odd.dcm").write_bytes(b"odd" * 100)
    assert "odd.dcm" in refused(tmp_path)["unreadable"]


# Regular grids out of what is none.

IRREGULAR = {
    "a gap": (lambda: stack([0, 2, 4, 8, 10, 12]), "slice-step", "1 slices mixed"),
    "an oblique gap": (lambda: stack([0, 2, 4, 8, 10], OBLIQUE), "slice-step", "1 slices mixed"),
    "uneven steps": (lambda: stack([0, 2, 4.5, 6, 8, 9.9]), "slice-step", "ran from 1.500 to 2.500"),
    "gantry tilt": (lambda: stack([0, 2, 4, 6], shift=(0, 0.3, 0)), "shear", "3 slices moved"),
    "backward tilt": (
        lambda: stack([0, 2, 4, 6], OBLIQUE, shift=-0.6 * OBLIQUE[1]), "shear", "3 slices moved"
    ),
    "shifted slice": (
        lambda: [*stack([0, 2, 4]), image(position=(0.37, -1, 6))], "slice-shift", "1 slices moved"
    ),
    "mixed sizes": (
        lambda: [*stack([0, 2, 4]), image(size=(15, 12), position=(0, 0, 6))], "slice-size", "1 slices moved"
    ),
    "mixed spacing": (
        lambda: [*stack([0, 2, 4]), image(spacing=(0.9, 1.3), position=(0, 0, 6))],
        "pixel-spacing",
        "1 slices moved",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", IRREGULAR)
def test_what_is_not_regular_is_refused_or_resampled_on_request(name, tmp_path):
    make, rule, told = IRREGULAR[name]
    slices = make()
    save(tmp_path, slices)
    assert rule in refused(tmp_path)
    reading = read_series(tmp_path, SeriesRule(is_regularised=True))
    (warning,) = reading.warnings
    assert warning.rule == "regularised" and told in warning.message
    (volume,) = reading.volumes
    axes = volume.grid.affine[:3, :3] / volume.grid.spacing
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    for dataset in slices:
        assert np.allclose(*sampled(volume, dataset), atol=0.01)


def test_nothing_of_a_tilted_series_is_cut_off(tmp_path):
    save(tmp_path, stack([0, 2, 4, 6, 8], shift=(0, 0.5, 0)))
    volume = read(tmp_path, is_regularised=True)
    inverse = np.linalg.inv(volume.grid.affine)
    for depth in (0, 8):
        for column, row in ((0, 0), (11, 8)):
            point = np.array([column * 0.8, row * 1.5 + depth * 0.5, depth]) * (-1, -1, 1)
            index = inverse @ (*point, 1)
            assert (index[:3] > -0.01).all() and (index[:3] < np.array(volume.grid.shape) - 0.99).all()


def test_copies_are_left_out_and_told_but_two_images_at_one_place_are_refused(tmp_path):
    save(tmp_path, stack([0, 2, 4]))
    shutil.copy(tmp_path / "s1.dcm", tmp_path / "copy.dcm")
    assert "slice-position" in refused(tmp_path)
    reading = read_series(tmp_path, SeriesRule(is_regularised=True))
    assert "copies left out" in reading.warnings[0].message
    assert np.allclose(reading.volumes[0].array, true_ramp(reading.volumes[0]), atol=0.01)
    (tmp_path / "copy.dcm").unlink()
    save(tmp_path, [image(position=(0, 0, 2), value=lambda p: ramp(p) + 1)], "other")
    assert "differ" in refused(tmp_path, is_regularised=True)["slice-position"]


def test_a_hole_is_not_filled(tmp_path):
    save(tmp_path, stack([0, 2, 4, 12, 14]))
    assert "s2.dcm, s3.dcm" in refused(tmp_path, is_regularised=True)["slice-gap"]


def test_a_regular_series_stays_as_it_is(tmp_path):
    save(tmp_path, stack([0, 2, 4]))
    one, other = (read_series(tmp_path, SeriesRule(is_regularised=flag)) for flag in (False, True))
    assert other.warnings == () and np.array_equal(one.volumes[0].array, other.volumes[0].array)
    assert np.array_equal(one.volumes[0].grid.affine, other.volumes[0].grid.affine)


# Enhanced multi-frame.


def enhanced(slices, syntax=ExplicitVRLittleEndian):
    """The same slices as one file of frames."""
    whole = slices[0]
    shared, per_frame = Dataset(), []
    measures = Dataset()
    measures.PixelSpacing = whole.PixelSpacing
    shared.PixelMeasuresSequence = Sequence([measures])
    orientation = Dataset()
    orientation.ImageOrientationPatient = whole.ImageOrientationPatient
    shared.PlaneOrientationSequence = Sequence([orientation])
    for single in slices:
        frame, position, transform, content = Dataset(), Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = single.ImagePositionPatient
        frame.PlanePositionSequence = Sequence([position])
        transform.RescaleSlope, transform.RescaleIntercept = single.RescaleSlope, single.RescaleIntercept
        frame.PixelValueTransformationSequence = Sequence([transform])
        content.StackID = single.get("StackID", "1")
        content.TemporalPositionIndex = single.get("TemporalPositionIndex", 1)
        frame.FrameContentSequence = Sequence([content])
        per_frame.append(frame)
    pixels = b"".join(single.PixelData for single in slices)
    for name in ("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "RescaleSlope"):
        delattr(whole, name)
    del whole.RescaleIntercept
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    whole.NumberOfFrames, whole.PixelData = len(slices), pixels
    whole.SharedFunctionalGroupsSequence = Sequence([shared])
    whole.PerFrameFunctionalGroupsSequence = Sequence(per_frame)
    if syntax != ExplicitVRLittleEndian:
        whole.compress(syntax)
    return whole


def in_16_bits(dataset):
    """What lossless codecs of 16 bits take."""
    array = np.frombuffer(dataset.PixelData, np.int32) // 1024
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.RescaleSlope, dataset.RescaleIntercept = 0.5, -100
    dataset.PixelData = array.astype(np.int16).tobytes()
    return dataset


LOSSLESS = [ExplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless]


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda uid: uid.keyword)
def test_a_multi_frame_file_gives_the_volume_of_its_slices(syntax, tmp_path):
    def slices():
        return list(map(in_16_bits, stack([6, 0, 4, 2], OBLIQUE, size=(40, 36))))

    plain = read(save(tmp_path / "plain", slices()))
    multi = read(save(tmp_path / "multi", [enhanced(slices(), syntax)]))
    assert multi.grid.is_close(plain.grid, 1e-6) and np.array_equal(multi.array, plain.array)
    assert np.array_equal(read(tmp_path / "multi/s0.dcm").array, plain.array)


@pytest.mark.parametrize("syntax", LOSSLESS[1:], ids=lambda uid: uid.keyword)
def test_compressed_slices_give_the_same_volume(syntax, tmp_path):
    plain = read(save(tmp_path / "plain", map(in_16_bits, stack([0, 2, 4], size=(40, 36)))))
    slices = [in_16_bits(dataset) for dataset in stack([0, 2, 4], size=(40, 36))]
    for dataset in slices:
        dataset.compress(syntax)
    assert np.array_equal(read(save(tmp_path / "small", slices)).array, plain.array)


@pytest.mark.parametrize("name, tolerance", [
    ("MR_small_RLE.dcm", 0), ("MR_small_jp2klossless.dcm", 0), ("MR_small_jpeg_ls_lossless.dcm", 0),
    ("MR_small_bigendian.dcm", 0), ("MR_small_implicit.dcm", 0),
])  # fmt: skip
def test_other_peoples_files_decode_to_the_same_pixels(name, tolerance, tmp_path):
    def series(source):
        slices = []
        for depth in (0, 2):
            dataset = pydicom.dcmread(TESTS / source)
            dataset.ImagePositionPatient = [0, 0, depth]
            dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
            slices.append(dataset)
        return read(save(tmp_path / source, slices))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.abs(series(name).array - series("MR_small.dcm").array).max() <= tolerance


def test_the_frames_of_each_time_and_stack_are_a_volume(tmp_path):
    slices = [
        image(
            position=(0, 0, depth),
            StackID=stack_id,
            TemporalPositionIndex=time,
            value=lambda p, t=time: ramp(p) * t,
        )
        for depth in (0, 2, 4)
        for stack_id in ("1", "2")
        for time in (1, 2)
    ]
    save(tmp_path, [enhanced(slices)])
    found = list_series(tmp_path)
    assert [len(s.frames) for s in found] == [3] * 4
    assert {s.distinction for s in found} == {f"stack {n}, time {t}" for n in (1, 2) for t in (1, 2)}
    assert read(tmp_path, pattern=found[1].id).array.mean() == pytest.approx(
        2 * read(tmp_path, pattern=found[0].id).array.mean(), rel=1e-4
    )


def with_too_few_groups(whole):
    del whole.PerFrameFunctionalGroupsSequence[-1]


def without_a_position(whole):
    del whole.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence


def with_half_of_the_pixels(whole):
    whole.PixelData = whole.PixelData[: len(whole.PixelData) // 2]


@pytest.mark.parametrize("damage, rule", [
    (with_too_few_groups, "unreadable"),
    (without_a_position, "missing-tag"),
    (with_half_of_the_pixels, "pixel-data"),
])  # fmt: skip
def test_a_damaged_multi_frame_file_is_refused(damage, rule, tmp_path):
    whole = enhanced(stack([0, 2, 4]))
    damage(whole)
    assert rule in refused(save(tmp_path, [whole]))


# Work stays bounded.


def jpeg(dataset, keep=slice(None)):
    """The slice in 8 bits, as JPEG with losses."""
    array = np.frombuffer(dataset.PixelData, np.int32).reshape(dataset.Rows, dataset.Columns) // 4096
    content = io.BytesIO()
    Image.fromarray(array.astype(np.uint8)).save(content, "JPEG", quality=95)
    dataset.PixelData = encapsulate([content.getvalue()[keep]])
    dataset["PixelData"].is_undefined_length = True
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.RescaleSlope = 4
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    return dataset


def test_lossy_jpeg_gives_nearly_the_same_volume_and_is_refused_when_cut_short(tmp_path):
    plain = read(save(tmp_path / "plain", stack([0, 2], size=(40, 36))))
    lossy = read(save(tmp_path / "lossy", map(jpeg, stack([0, 2], size=(40, 36)))))
    assert np.abs(lossy.array - plain.array).max() < 12
    first, second = stack([0, 2], size=(40, 36))
    assert "pixel-data" in refused(save(tmp_path / "cut", [jpeg(first), jpeg(second, slice(-40))]))


def test_a_codestream_larger_than_its_image_is_not_decoded(tmp_path, monkeypatch):
    def decode(*_):
        raise AssertionError

    monkeypatch.setattr(pixels, "get_decoder", decode)
    slices = [in_16_bits(dataset) for dataset in stack([0, 2], size=(40, 36))]
    for dataset in slices:
        dataset.compress(JPEG2000Lossless)
        start = dataset.PixelData.index(b"\xff\x4f\xff\x51") + 8
        grown = (100_000).to_bytes(4, "big")
        dataset.PixelData = dataset.PixelData[:start] + grown + grown + dataset.PixelData[start + 8 :]
        dataset["PixelData"].is_undefined_length = True
    with pytest.raises(InputError) as caught:
        read(save(tmp_path, slices))
    assert "another size" in str(caught.value.__cause__)


def test_a_header_that_claims_more_than_any_scanner_makes_is_refused(tmp_path):
    slices = stack([0, 2])
    for dataset in slices:
        dataset.Rows = dataset.Columns = 65535
    assert "too-large" in refused(save(tmp_path, slices))


def test_a_deflated_file_is_not_inflated(tmp_path):
    slices = stack([0, 2])
    for dataset in slices:
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    assert "deflated" in refused(save(tmp_path, slices))


def test_values_beyond_what_a_voxel_holds_are_refused(tmp_path):
    slices = stack([0, 2])
    slices[0].RescaleSlope = "1e300"
    assert "non-finite" in refused(save(tmp_path, slices))


def test_links_to_folders_are_not_followed(tmp_path):
    save(tmp_path / "a", stack([0, 2, 4]))
    (tmp_path / "a/again").symlink_to(tmp_path)
    assert len(list_series(tmp_path)[0].files) == 3


def damaged(folder, name, changes):
    """A copy of a file in a folder, with bytes put at places that are shares of its length."""
    content = bytearray((folder / name).read_bytes())
    for place, value in changes:
        content[int(place * (len(content) - 1))] = value
    (folder / name).write_bytes(bytes(content))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Folders of one series each: slices, frames, and both compressed."""
    folder = tmp_path_factory.mktemp("sound")
    small = [in_16_bits(dataset) for dataset in stack([0, 2, 4], size=(40, 36))]
    for dataset, syntax in zip(small, LOSSLESS[1:], strict=True):
        dataset.compress(syntax)
    save(folder / "slices", stack([0, 2, 4]))
    save(folder / "small", small)
    save(folder / "frames", [enhanced(stack([0, 2, 4]))])
    save(folder / "small frames", [enhanced([in_16_bits(d) for d in stack([0, 2, 4])], RLELossless)])
    return folder


@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)
@given(
    kind=st.sampled_from(["slices", "small", "frames", "small frames"]),
    # Most of what can go wrong stands before the pixels.
    changes=st.lists(st.tuples(st.floats(0, 0.6) | st.floats(0, 1), st.integers(0, 255)), max_size=4),
    keep=st.just(1.0) | st.floats(0, 1),
    rule=st.builds(SeriesRule, st.none() | st.just("T1"), st.booleans()),
)
def test_no_damage_ends_in_anything_but_a_fault(kind, changes, keep, rule, sound, tmp_path):
    folder = Path(shutil.copytree(sound / kind, tmp_path / kind, dirs_exist_ok=True))
    damaged(folder, "s0.dcm", changes)
    content = (folder / "s0.dcm").read_bytes()
    (folder / "s0.dcm").write_bytes(content[: int(keep * len(content))])
    try:
        (volume,) = read_series(folder, rule).volumes
    except FaultError as error:
        assert all(fault.rule and fault.message for fault in error.faults)
    else:
        assert np.isfinite(volume.array).all() and np.isfinite(volume.grid.affine).all()


def test_a_value_that_no_header_may_have_is_read_without_a_warning(sound, tmp_path):
    path = next((sound / "slices").iterdir())
    file = pydicom.dcmread(path)
    file.Modality = "SEG"
    tag = pydicom.tag.Tag("SeriesInstanceUID")
    file[tag] = pydicom.DataElement(tag, "UI", "1." * 50 + "1", validation_mode=pydicom.config.IGNORE)
    file.save_as(tmp_path / "long.dcm")
    assert read_header(tmp_path / "long.dcm").series == ("1." * 50)[:64]
