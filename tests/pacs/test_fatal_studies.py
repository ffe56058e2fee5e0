"""A study at which the listener ends, each time that it is predicted, keeps no other waiting for ever."""

from threading import Thread

import numpy as np
import pytest

from pipeline.checkpoint import read_checkpoint
from pipeline.data.dicom import SeriesRule, list_dicom_files
from pipeline.data.synthetic.series import write_series
from pipeline.errors import Stopped
from pipeline.inference.predictor import load_predictor, select_device
from pipeline.pacs.desk import Desk
from pipeline.pacs.instances import read_instance
from pipeline.pacs.queue import Queue
from pipeline.pacs.sending import Courier
from pipeline.signals import StopSignals
from pipeline.volume import Grid, Volume
from pipeline.workflows.listening import _Reader


def test_a_study_at_which_the_program_ends_is_tried_alone_then_parked_and_the_others_are_answered(
    model, tmp_path
):
    queue, signals = Queue(tmp_path), StopSignals()

    def tell(text):
        signals.is_requested |= "predicted" in text

    desk = Desk(queue, tmp_path / "incoming", 0.001, 1e9, tell)
    for num_slices in (5, 8):
        array = np.random.default_rng(num_slices).integers(0, 999, (24, 20, num_slices)).astype(np.int16)
        grid = Grid(array.shape, np.diag([-1.5, -1.5, 3.0, 1.0]))
        write_series(tmp_path / f"scan{num_slices}", Volume(array, grid))
        sender = Thread()
        for path in list_dicom_files(tmp_path / f"scan{num_slices}"):
            desk.put(read_instance(path.read_bytes()), sender)
        desk.end(sender, is_released=True)
    checkpoint = read_checkpoint(model)
    predictor = load_predictor(checkpoint, select_device("cpu"))
    predict = predictor.predict

    def break_down(prepared, grid, *more):
        if grid.shape[2] == 5:
            raise RuntimeError("a fault of the program's own")
        return predict(prepared, grid, *more)

    predictor.predict = break_down
    reader = _Reader(queue, desk, predictor, checkpoint, tmp_path / "out", (SeriesRule(),), tell)
    courier = Courier(None, queue, reader.model, reader.path_of, tell)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            reader.work(courier, signals)
    with pytest.raises(Stopped):
        reader.work(courier, signals)
    assert [one.state for one in queue.standings()] == ["parked", "predicted"]
    assert "ended the program 3 times" in queue.standings()[0].reason
    queue.close()
