"""`clinseg convert`: one image in another format as NIfTI."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.data.cases import exists
from pipeline.data.dicom import SeriesRule
from pipeline.data.images import is_series, read_with_warnings
from pipeline.data.nrrd_metaimage import is_foreign, read_foreign
from pipeline.errors import ConfigError, Fault, InputError
from pipeline.export.nifti import write_image
from pipeline.volume import Grid


def convert(source: Path, target: Path, rule: SeriesRule) -> tuple[Grid, tuple[Fault, ...]]:
    """Reads an NRRD file, a MetaImage, a DICOM series or anything else that is read, and writes it as NIfTI.

    Args:
        source: What to read.
        target: Ends in `.nii` or `.nii.gz`.
        rule: Which DICOM series, where it is DICOM.

    Returns:
        The grid that was written, and what was accepted but deserves a look.

    Raises:
        FaultError: If it cannot be read or written.
    """
    if not target.name.endswith((".nii", ".nii.gz")):
        raise ConfigError(Fault(str(target), "file-type", "an image is written as .nii or .nii.gz"))
    if not exists(source):
        raise InputError(Fault(str(source), "missing-file", "no such file or folder; check the path"))
    if target.exists() and target.samefile(source):
        raise ConfigError(Fault(str(target), "would-overwrite", "it would replace its own source"))
    is_strange = is_foreign(source) and source.is_file()
    reading = read_foreign(source) if is_strange else read_with_warnings(source, rule)
    if len(reading.volumes) > 1:
        message = f"it holds {len(reading.volumes)} volumes, and one is written; split it first"
        raise InputError(Fault(str(source), "num-channels", message))
    volume = reading.volumes[0]
    array = volume.array if volume.array.dtype != np.float64 else volume.array.astype(np.float32)
    write_image(target, array, volume.grid, {"format": "DICOM" if is_series(source) else source.suffix})
    return volume.grid, reading.warnings
