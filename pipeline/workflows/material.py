"""What a training works on: the study, who validates, and every case on the network's grid."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Job
from pipeline.data.cases import Study, read_manifest
from pipeline.data.datasets import PreparedCase, hash_data, prepare_cases
from pipeline.data.fingerprint import measure_intensities
from pipeline.data.folds import Split, split_cases
from pipeline.errors import ConfigError, Fault, InputError
from pipeline.files import write_text
from pipeline.inference.predictor import build_preprocessing
from pipeline.labels import LabelContract
from pipeline.progress import progress_bar
from transforms.preprocessing import IntensityStatistics


@dataclass(frozen=True)
class Material:
    """Everything about the data of a job.

    Attributes:
        study: Cases, labels and channels as declared.
        contract: Names and values of the labels.
        split: Who trains and who validates.
        statistics: Intensities of the training cases, if the normalisation needs them.
        training: Prepared cases to train on.
        validation: Prepared cases held out, possibly none.
        data_hash: One hash of the content of all of them.
    """

    study: Study
    contract: LabelContract
    split: Split
    statistics: tuple[IntensityStatistics, ...]
    training: list[PreparedCase]
    validation: list[PreparedCase]
    data_hash: str

    def write_split(self, folder: Path) -> Path:
        """Writes which cases train and which validate to `folder/split.json`."""
        cases = {"training": self.split.training, "validation": self.split.validation}
        names = {part: [case.id for case in members] for part, members in cases.items()}
        path = folder / "split.json"
        write_text(path, json.dumps(names, indent=1, ensure_ascii=False) + "\n")
        return path


def load_material(job: Job) -> Material:
    """Reads the manifest, divides the cases and prepares every one of them.

    Raises:
        FaultError: With all faults of manifest and cases together.
    """
    study = read_manifest(job.data)
    contract = LabelContract(study.labels, job.data.regions)
    check_structures(job, contract)
    split = split_cases(study.cases, job.data, job.training.seed)
    cases = [*split.training, *split.validation]
    unlabelled = [case for case in cases if case.label is None]
    if unlabelled:
        message = "a case to train on needs a label map; add one or take the case out of the manifest"
        raise InputError(Fault(case.id, "missing-label", message) for case in unlabelled)
    num_channels = len(study.channels)
    statistics: tuple[IntensityStatistics, ...] = ()
    if job.preprocessing.normalisation == "dataset":
        with progress_bar("Measuring intensities", len(split.training)) as advance:
            statistics = measure_intensities(split.training, study.labels, num_channels, advance)
    settings = build_preprocessing(job.preprocessing, statistics)
    with progress_bar("Preparing cases", len(cases)) as advance:
        prepared = prepare_cases(cases, study.labels, num_channels, settings, job.data, advance)
    num_training = len(split.training)
    return Material(
        study=study,
        contract=contract,
        split=split,
        statistics=statistics,
        training=prepared[:num_training],
        validation=prepared[num_training:],
        data_hash=hash_data(prepared),
    )


def check_structures(job: Job, contract: LabelContract) -> None:
    """Raises a ConfigError if the job names a structure that the data do not declare, or wrong pairs."""
    faults = _find_unknown(
        "inference.largest_component", job.inference.largest_component, contract.structures
    )
    pairs = job.data.left_right_pairs
    labels = [name for name, value in contract.labels.items() if value != 0]
    unknown = _find_unknown("data.left_right_pairs", [name for pair in pairs for name in pair], labels)
    if not unknown:
        try:
            contract.channel_laterality(job.preprocessing.left_right_axis, pairs)
        except ValueError as error:
            message = f"regions must have both sides or come in pairs as well; {error}"
            faults.append(Fault("data.left_right_pairs", "one-sided-region", message))
    if faults or unknown:
        raise ConfigError([*faults, *unknown])


def _find_unknown(key: str, names: Iterable[str], known: Collection[str]) -> list[Fault]:
    unknown = [name for name in names if name not in known]
    message = f"there is no structure called {', '.join(unknown)}; the data declare: {', '.join(known)}"
    return [Fault(key, "unknown-structure", message)] if unknown else []
