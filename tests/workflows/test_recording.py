"""Figures of a run come back from its record with the intervals that they had."""

import pytest

from pipeline.inference.metric_table import CaseMetrics
from pipeline.metrics import STRUCTURE_METRICS
from pipeline.report.case_tables import segmentation_figures, structure_strips
from pipeline.statistics import UNKNOWN, summarise
from pipeline.tracking import read_metrics, start_record
from pipeline.workflows.runs.recording import read_estimates, record_best, record_best_masks


@pytest.fixture
def record(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    started = start_record("figures", f"sqlite:///{tmp_path}/store.db", "segmentation")
    yield started
    started.close("FINISHED")


@pytest.mark.parametrize("values", [[0.9], [0.8, 0.9, 0.95]])
def test_an_interval_is_read_as_it_was_recorded(record, values):
    figures = {"auc": summarise(values).estimate, "accuracy": summarise(values).estimate}
    record_best(record, figures, step=3)
    record.flush()
    assert read_estimates(record.run) == figures
    assert all(abs(point[1]) < 2 for points in read_metrics(record.run).values() for point in points)


@pytest.mark.parametrize("num", [1, 2])
def test_only_of_one_case_an_interval_is_unknown(record, num):
    rows = [
        CaseMetrics(f"c{case}", "liver", dict.fromkeys(STRUCTURE_METRICS, 1.0) | {"dice": 0.9 - case / 10})
        for case in range(num)
    ]
    record_best_masks(record, rows, step=1)
    record.flush()
    found = read_estimates(record.run)
    assert {name.partition("/")[0] for name in found} == ({*STRUCTURE_METRICS} if num == 1 else {"dice"})
    note = segmentation_figures(rows)[0].note
    assert note == (f"95 %: {UNKNOWN}" if num == 1 else "95 %: 0.8000 to 0.9000")
    assert structure_strips(rows, {})[0].mean == found["dice/liver"]
