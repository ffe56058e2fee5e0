"""What an enhancer is said to come to, where the truth of some images is unknown."""

import pytest

from pipeline.tracking import RunFolder
from pipeline.workflows.enhancement_judging import gather_figures


def add_fold(folder, name, table):
    (folder / name).mkdir()
    (folder / name / "cases.csv").write_text(table)
    return RunFolder(folder / name, "noise", "enhancement", "", 1)


@pytest.mark.parametrize("order", [("known", "unknown"), ("unknown", "known")])
def test_folds_without_a_truth_take_nothing_from_those_with_one(tmp_path, order):
    folds = {
        "known": add_fold(tmp_path, "known", "case,psnr_after,mean_change\na,20,1\nb,30,1\nc,,1\n"),
        "unknown": add_fold(tmp_path, "unknown", "case,mean_change\nd,1\n"),
    }
    figures = gather_figures([folds[name] for name in order])
    assert list(figures) == ["psnr_after"] and figures["psnr_after"].value == 25
