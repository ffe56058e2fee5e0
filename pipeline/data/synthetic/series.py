"""A volume as a DICOM series, for tests and pictures that must not show a person."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from pipeline.volume import Volume

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_series(folder: Path, volume: Volume, digits: int = 10, description: str = "") -> list[Path]:
    """Writes one MR file for each slice along the last axis, in the order opposite to their names.

    Args:
        folder: Made if it is not there.
        volume: int16.
        digits: Of the numbers that say where a slice lies.
        description: Of the series.
    """
    folder.mkdir(parents=True, exist_ok=True)
    study, series, frame = (generate_uid() for _ in range(3))
    num_slices = volume.grid.shape[2]
    paths = []
    for k in range(num_slices):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
        file = FileDataset("", _place(volume, k, digits), file_meta=meta, preamble=b"\0" * 128)
        file.SOPClassUID, file.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        file.StudyInstanceUID, file.SeriesInstanceUID, file.FrameOfReferenceUID = study, series, frame
        file.Modality, file.PatientName, file.PatientID = "MR", "Made^Up", "made-up"
        file.InstanceNumber, file.SeriesDescription = k + 1, description
        paths.append(folder / f"{num_slices - k:03d}.dcm")
        file.save_as(paths[-1], enforce_file_format=True)
    return paths


def _place(volume: Volume, k: int, digits: int) -> Dataset:
    """Pixels of a slice, and where they lie."""
    affine = _RAS_TO_LPS @ volume.grid.affine
    spacing = volume.grid.spacing
    axes = affine[:3, :3] / spacing
    plane = Dataset()
    plane.Rows, plane.Columns = volume.grid.shape[1], volume.grid.shape[0]
    plane.ImageOrientationPatient = [f"{v:.{digits}f}" for v in (*axes[:, 0], *axes[:, 1])]
    plane.ImagePositionPatient = [f"{v:.{digits}f}" for v in (affine @ (0, 0, k, 1))[:3]]
    plane.PixelSpacing = [f"{spacing[1]:.{digits}f}", f"{spacing[0]:.{digits}f}"]
    plane.SliceThickness = f"{spacing[2]:.{digits}f}"
    plane.SamplesPerPixel, plane.PhotometricInterpretation = 1, "MONOCHROME2"
    plane.BitsAllocated = plane.BitsStored = 16
    plane.HighBit, plane.PixelRepresentation = 15, 1
    plane.PixelData = np.ascontiguousarray(volume.array[:, :, k].T.astype("<i2")).tobytes()
    return plane
