"""Probabilities lie on the image's grid, decide as the mask does, and are whole or absent."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from pipeline.errors import ResourceError
from pipeline.export.probabilities import write_probabilities
from pipeline.volume import Grid

AFFINE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.2, 0.05) * [1, 2, 3], (4, -8, 2))


def test_what_is_put_is_read_with_its_geometry(tmp_path):
    values = torch.rand(2, 7, 5, 4)
    with write_probabilities(tmp_path / "p.nii", Grid((7, 5, 4), AFFINE), ("air", "organ")) as file:
        for start in (0, 3, 6):
            stop = min(start + 3, 7)
            file.put((slice(start, stop), slice(0, 5), slice(0, 4)), values[:, start:stop])
        assert not (tmp_path / "p.nii").exists()
    image = nib.load(tmp_path / "p.nii")
    assert image.shape == (7, 5, 4, 2)
    assert np.array_equal(np.asarray(image.dataobj), values.permute(1, 2, 3, 0).numpy())
    assert np.allclose(image.affine, AFFINE, atol=1e-6)
    content = json.loads(image.header.extensions[0].get_content())
    assert content == {"clinseg": {"frames": ["air", "organ"]}}
    assert list(tmp_path.iterdir()) == [tmp_path / "p.nii"]


def test_an_error_on_the_way_leaves_nothing(tmp_path):
    def interrupted():
        with write_probabilities(tmp_path / "p.nii", Grid((7, 5, 4), AFFINE), ("a", "b")):
            raise InterruptedError

    with pytest.raises(ResourceError):  # an OSError, as a failing disk gives
        interrupted()
    assert not any(tmp_path.iterdir())


def test_a_disk_too_small_is_known_at_once(small_disk):
    with (
        pytest.raises(ResourceError, match="disk is full"),
        write_probabilities(small_disk / "p.nii", Grid((50, 50, 50), AFFINE), ("a", "b")),
    ):
        raise AssertionError("nothing is predicted for a file that cannot be written")
    assert not any(small_disk.iterdir())


@pytest.mark.parametrize("max_memory", [[], ["--max-memory", "4GiB"]])
def test_the_mask_is_where_they_are_largest(clinseg, trained, tmp_path, max_memory):
    image = trained.manifest.parent / "imagesTr/phantom_01.nii.gz"
    answer = clinseg("predict", trained.model, image, "-o", tmp_path, "--probabilities", *max_memory)
    assert answer.code == 0, answer.err
    mask, stored = (
        nib.load(tmp_path / "phantom_01.nii.gz"),
        nib.load(tmp_path / "probabilities/phantom_01.nii"),
    )
    probabilities = np.asarray(stored.dataobj)
    assert np.allclose(probabilities.sum(-1), 1, atol=1e-5)
    assert np.array_equal(probabilities.argmax(-1), np.asarray(mask.dataobj))
    assert np.array_equal(stored.affine, mask.affine)
