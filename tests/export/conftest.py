"""A prediction of a series, wherever its slices lie in the patient."""

import warnings

import numpy as np
import pydicom
import pytest

from pipeline.data.dicom import list_dicom_files, read_series
from pipeline.data.synthetic.series import write_series
from pipeline.export.dicom_source import read_source
from pipeline.export.prediction import Maker, Prediction
from pipeline.labels import LabelContract
from pipeline.terminology import Code, Term
from pipeline.volume import Grid, Volume

LABELS = {"background": 0, "left_kidney": 2, "Рана": 5, "spleen": 7}
TERMS = {"Рана": Term(Code("52988006", "Lesion"), "abnormality", None, "#112233")}
SHAPE = (13, 11, 7)


@pytest.fixture
def predicted(tmp_path):
    """Makes a series on an affine, or takes one from a folder, and a label map with holes on it."""

    def make(affine=None, *, folder=None, digits=10, regions=None, is_empty=False, contract=None, edit=None):
        if folder is None:
            folder = tmp_path / "series"
            array = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
            grid = Grid(SHAPE, np.diag([1.0, 1.0, 1.0, 1.0]) if affine is None else affine)
            write_series(folder, Volume(array, grid), digits)
        if edit is not None:
            with warnings.catch_warnings(action="ignore"):  # pydicom quotes what is spoilt on purpose
                for path in list_dicom_files(folder):
                    file = pydicom.dcmread(path)
                    edit(file)
                    file.save_as(path)
        (volume,) = read_series(folder).volumes
        source = read_source("case", list_dicom_files(folder), volume.grid)
        contract = contract or LabelContract(LABELS, regions, terminology=TERMS)
        array = np.zeros(volume.grid.shape, np.uint8)
        if not is_empty:
            chosen = np.random.default_rng(0).random(tuple(min(n - 3, 24) for n in volume.grid.shape))
            block = np.zeros(chosen.shape, np.uint8)
            block[chosen > 0.4], block[chosen > 0.9] = contract.values[1], contract.values[2]
            i, j, k = block.shape
            array[1 : i + 1, 1 : j + 1, 1 : k + 1] = block
        return Prediction(array, volume.grid, contract, source, Maker("run-1", "ab" * 32, "0.1.0"))

    return make
