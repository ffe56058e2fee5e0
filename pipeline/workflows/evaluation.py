"""`clinseg evaluate`: predictions against references."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pipeline.config import load_job, segmentation_job
from pipeline.data.cases import read_manifest
from pipeline.errors import ConfigError, Fault
from pipeline.files import check_output
from pipeline.inference.confusion import write_confusions
from pipeline.inference.evaluation import Evaluation, Structures, evaluate_folders
from pipeline.inference.metric_table import write_metrics
from pipeline.labels import LabelContract
from pipeline.progress import progress_bar


def evaluate(
    predictions: Path,
    references: Path,
    table: Path | None = None,
    config: Path | None = None,
    ignore_value: int | None = None,
) -> Evaluation:
    """Compares label maps case by case and writes the table if a path for it is given.

    Args:
        predictions: Folder of label maps, or one.
        references: Folder of label maps, or one.
        table: CSV to write; beside it `<stem>_confusion.csv` tells which structure was taken for which.
        config: Job whose word on labels counts, as in its own training: structures, the value to ignore, and
            what is labelled in each case. It says nothing of a case that its manifest does not know.
        ignore_value: What references hold where nobody knows; with a config it is the config's to say.

    Raises:
        FaultError: If nothing can be compared at all.
    """
    confusions = table.with_name(f"{table.stem}_confusion.csv") if table is not None else None
    for path in filter(None, (table, confusions)):
        check_output(path, filter(None, (predictions, references, config)))
    contract, declared = _read_labels(config, ignore_value) if config is not None else (None, {})

    def labelled(case: str, present: Collection[int]) -> Structures:
        assert contract is not None
        return contract.labelled_structures(declared.get(case), present)

    num_cases = len(list(predictions.glob("*.nii*"))) if predictions.is_dir() else 1
    with progress_bar("Comparing cases", num_cases) as advance:
        evaluation = evaluate_folders(
            predictions,
            references,
            contract.structures if contract else None,
            lambda *_: advance(),
            ignore_value=contract.ignore_value if contract else ignore_value,
            labelled=labelled if contract else None,
        )
    if table is not None and confusions is not None:
        write_metrics(table, evaluation.rows)
        write_confusions(confusions, evaluation.confusions)
    return evaluation


def _read_labels(
    config: Path, ignore_value: int | None
) -> tuple[LabelContract, dict[str, tuple[str, ...] | None]]:
    """What a job says of label values, and what its manifest says is labelled in each case."""
    if ignore_value is not None:
        message = (
            "with --config, data.ignore_value or the manifest says what is ignored; leave one of them out"
        )
        raise ConfigError(Fault("--ignore", "contradiction", message))
    study = read_manifest(segmentation_job(load_job(config)).data)
    return study.contract, {case.id: case.labelled for case in study.cases}
