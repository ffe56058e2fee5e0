"""The process that reads NRRD and MetaImage: its limits are set before it starts, it leaves plain arrays.

    python -m pipeline.data.foreign_child IMAGE FOLDER

writes `FOLDER/voxels.npy` and `FOLDER/affine.npy`, the latter in LPS.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 - its customary name


def main() -> None:
    """Reads the image that the command line names."""
    source, folder = sys.argv[1], Path(sys.argv[2])
    image = sitk.ReadImage(source)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    np.save(folder / "affine.npy", affine)
    np.save(folder / "voxels.npy", sitk.GetArrayViewFromImage(image).T)


if __name__ == "__main__":
    main()
