"""`clinseg evaluate --downstream`: whether what is measured on enhanced images comes nearer to the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from pipeline.checkpoint import Checkpoint
from pipeline.data.cases import Case
from pipeline.data.images import find_inputs, read_label_map
from pipeline.errors import ConfigError, Fault, FaultError, InputError
from pipeline.files import check_writable, write_json
from pipeline.inference.cohort import predict_cohort
from pipeline.inference.downstream import (
    ENHANCED,
    ORIGINAL,
    TRUTH,
    Effect,
    Measured,
    Turn,
    find_effects,
    find_turns,
    measure_case,
    restore_original,
    tell_effect,
    write_measurements,
)
from pipeline.inference.enhancing import CHANGES
from pipeline.inference.pairing import find_label_maps, pair_truths
from pipeline.inference.predictor import Predictor, load_predictor, select_device
from pipeline.labels import LabelContract
from pipeline.progress import progress_bar
from pipeline.workflows.applying.case_reports import describe_model
from pipeline.workflows.runs.models import load_model

FOLDER, TABLE, REPORT = "downstream", "downstream.csv", "downstream.json"
"""Beside the enhanced images: masks, a table of them, and what they say."""


@dataclass(frozen=True, slots=True)
class Downstream:
    """What came of it.

    Attributes:
        rows: Every case that was measured, each with every structure.
        effects: By structure and figure; empty if no case was measured.
        turns: Structures that appear or disappear.
        told: What it means, in words; None if no case was measured.
        is_warning: Whether enhanced images should not be measured so.
        faults: Why cases are missing.
    """

    rows: list[Measured]
    effects: dict[str, dict[str, Effect]]
    turns: list[Turn]
    told: str | None
    is_warning: bool
    faults: list[Fault]


def evaluate_downstream(
    enhanced: Path,
    truth: Path,
    segmenter: str,
    labels: Path | None = None,
    device: str = "auto",
) -> Downstream:
    """Segments images before and after they were enhanced, and as they should be, and compares what is found.

    Writes masks to `<enhanced>/downstream/`, and beside it `downstream.csv` and `downstream.json`.

    Args:
        enhanced: Folder that `clinseg enhance` wrote.
        truth: What its images should look like: a folder by the same names, or a file for one image.
        segmenter: A segmentation model, by any of its names.
        labels: Folder of label maps of the same names, which are then what masks should be; None takes the
            segmenter's masks of the true images.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        FaultError: If nothing can be compared at all.
    """
    checkpoint = find_segmenter("--downstream", segmenter)
    if not (enhanced / CHANGES).is_dir():
        message = "expected a folder that `clinseg enhance` wrote, with change maps in `changes/`"
        raise ConfigError(Fault(str(enhanced), "not-enhanced", message))
    check_writable(enhanced)
    cases = find_inputs([enhanced], len(checkpoint.channels))
    if wrong := {len(case.images) for case in cases} - {len(checkpoint.channels)}:
        raise ConfigError(_channel_fault("--downstream", checkpoint, max(wrong)))
    truths, faults = pair_truths(cases, truth, len(checkpoint.channels))
    known = [case for case in cases if case.id in truths]
    return measure_downstream(checkpoint, known, truths, enhanced, select_device(device), labels, faults)


def find_segmenter(
    setting: str, model: str, uri: str | None = None, num_channels: int | None = None
) -> Checkpoint:
    """The segmentation model that `setting` names.

    Args:
        setting: The option or setting.
        model: Any of its names.
        uri: Of the MLflow server; None for the one that is set.
        num_channels: Of the images that it is for, if that is known.

    Raises:
        ConfigError: If there is no such model, or it does something else, or with other channels.
        IntegrityError: If its file is damaged.
        ServiceError: If a registered model cannot be fetched.
    """
    checkpoint = load_model(model, uri=uri)
    if checkpoint.job.get("task", "segmentation") != "segmentation":
        message = f"{model} is no segmentation model; name one that measures what matters in these images"
        raise ConfigError(Fault(setting, "other-task", message))
    if num_channels is not None and len(checkpoint.channels) != num_channels:
        raise ConfigError(_channel_fault(setting, checkpoint, num_channels))
    return checkpoint


def _channel_fault(setting: str, checkpoint: Checkpoint, num_channels: int) -> Fault:
    told = ", ".join(checkpoint.channels)
    message = (
        f"the model segments images of {len(checkpoint.channels)} channels ({told}), and these have "
        f"{num_channels}; name one that was trained on such images"
    )
    return Fault(setting, "num-channels", message)


def measure_downstream(
    segmenter: Checkpoint,
    cases: Sequence[Case],
    truths: Mapping[str, Case],
    enhanced: Path,
    device: torch.device,
    labels: Path | None = None,
    faults: Sequence[Fault] = (),
) -> Downstream:
    """Segments and compares; see `evaluate_downstream`.

    Args:
        segmenter: Checkpoint of a segmentation model.
        cases: Enhanced images, in `enhanced`.
        truths: What each should look like, by its id.
        enhanced: Where change maps are, and where everything goes.
        device: Where to compute.
        labels: Folder of label maps, if there are.
        faults: Why other cases are missing.

    Raises:
        InputError: If there is no such folder of label maps.
    """
    # Before anything is segmented: that takes long.
    known: dict[str, Path] | None = None
    unpaired: list[Fault] = []
    if labels is not None:
        known, unpaired = find_label_maps((case.id for case in cases), labels)
    predictor = load_predictor(segmenter, device)
    pending = [case for case in cases if known is None or case.id in known]
    masks, unread = _segment(predictor, pending, truths, enhanced)
    references = {case: found[TRUTH] if known is None else known[case] for case, found in masks.items()}
    result = _measure(predictor.contract, masks, references)
    result = replace(result, faults=[*faults, *unread, *unpaired, *result.faults])
    _write(enhanced, result, describe_model(segmenter, device), has_labels=labels is not None)
    return result


def _segment(
    predictor: Predictor, cases: Sequence[Case], truths: Mapping[str, Case], enhanced: Path
) -> tuple[dict[str, dict[str, Path]], list[Fault]]:
    """Masks by case and image, of the cases that have all of them, and what is wrong with the others."""
    folder, originals = enhanced / FOLDER, []
    faults: list[Fault] = []
    for case in cases:
        try:
            originals.append(restore_original(case, enhanced / CHANGES, folder / "images"))
        except InputError as error:
            faults += error.faults
    kept = {case.id for case in originals}
    groups = {
        ORIGINAL: originals,
        ENHANCED: [case for case in cases if case.id in kept],
        TRUTH: [replace(truths[case.id], id=case.id) for case in originals],
    }
    masks: dict[str, dict[str, Path]] = {}
    with progress_bar("Segmenting images", 3 * len(kept)) as advance:
        for image, members in groups.items():
            for report in predict_cohort(predictor, members, folder / image, lambda report: advance()):
                faults += report.faults
                if report.mask is not None:
                    masks.setdefault(report.case, {})[image] = folder / image / report.mask
    return {case: found for case, found in masks.items() if len(found) == len(groups)}, faults


def _measure(
    contract: LabelContract, masks: Mapping[str, Mapping[str, Path]], references: Mapping[str, Path]
) -> Downstream:
    rows: list[Measured] = []
    faults: list[Fault] = []
    for case, reference in references.items():
        found = masks[case]
        # The mask of a true image that is itself the reference has nothing to be compared with.
        compared = {image: path for image, path in found.items() if path != reference}
        try:
            volumes = {image: read_label_map(path) for image, path in compared.items()}
            true = read_label_map(reference)
            rows += measure_case(case, volumes, true, contract.structures, contract.ignore_value)
        except FaultError as error:
            faults += [Fault(case, fault.rule, fault.message) for fault in error.faults]
    effects, turns = find_effects(rows), find_turns(rows)
    told, is_warning = tell_effect(effects, turns) if rows else (None, False)
    return Downstream(rows, effects, turns, told, is_warning, faults)


def _write(enhanced: Path, result: Downstream, made_with: Mapping[str, object], *, has_labels: bool) -> None:
    """The table, and beside it what it says."""
    write_measurements(enhanced / TABLE, result.rows)
    content = {
        **made_with,
        "reference": "label maps" if has_labels else "segmentations of the true images",
        "num_cases": len({row.case for row in result.rows}),
        "told": result.told,
        "warning": result.is_warning,
        "faults": [str(fault) for fault in result.faults],
        "effects": {
            structure: {name: asdict(effect) for name, effect in of_it.items()}
            for structure, of_it in result.effects.items()
        },
        "turns": [asdict(turn) for turn in result.turns],
    }
    write_json(enhanced / REPORT, content)
