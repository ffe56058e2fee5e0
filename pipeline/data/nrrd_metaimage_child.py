"""The process that reads NRRD and MetaImage: its limits are set before it starts, it leaves plain arrays.

    python -m pipeline.data.nrrd_metaimage_child IMAGE FOLDER

writes `FOLDER/voxels.npy` and `FOLDER/affine.npy`, the latter in LPS.
"""

from __future__ import annotations

import sys
from pathlib import Path

import itk
import numpy as np


def main() -> None:
    """Reads the image that the command line names."""
    source, folder = sys.argv[1], Path(sys.argv[2])
    image = itk.imread(source)
    affine = np.eye(4)
    affine[:3, :3] = itk.array_from_matrix(image.GetDirection()) * np.array(itk.spacing(image))
    affine[:3, 3] = itk.origin(image)
    np.save(folder / "affine.npy", affine)
    np.save(folder / "voxels.npy", itk.array_view_from_image(image).T)


if __name__ == "__main__":
    main()
