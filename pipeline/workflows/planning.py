"""`clinseg plan`: from data to a complete, commented config, and what training it would take."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError

import pipeline
from pipeline.config import DataSection, commented_yaml
from pipeline.data.cases import Case, Study, entry_faults, read_manifest
from pipeline.data.fingerprint import find_labels, survey_study
from pipeline.data.manifests import parse_manifest
from pipeline.errors import ConfigError, Fault, InputError
from pipeline.files import check_writable, write_text
from pipeline.inference.predictor import select_device
from pipeline.memory import available_bytes, format_size
from pipeline.planning import Machine, describe_study, pace, plan_job
from pipeline.precision import training_dtype
from pipeline.progress import progress_bar
from pipeline.workflows.estimating import Estimate, estimate_job

_FEW_STEPS = 1000


@dataclass(frozen=True, slots=True)
class PlanResult:
    """What was planned.

    Attributes:
        config: The config.
        fingerprint: What the study is like, as JSON.
        study: The same in a few lines.
        estimate: What training it would take here.
        advice: What deserves a thought.
    """

    config: Path
    fingerprint: Path
    study: list[str]
    estimate: Estimate
    advice: list[str]


def plan(data: Path, config: Path, minutes: float, labels: Mapping[str, int] | None = None) -> PlanResult:
    """Plans a job for a study and for this machine, tries it out for 20 steps and writes it.

    Args:
        data: A manifest in any of its forms.
        config: The YAML to write; its fingerprint is written beside it.
        minutes: Budget of the training.
        labels: Values by name, for a manifest that names none; a CSV's are otherwise found and numbered.

    Raises:
        ConfigError: If there is a file called `config` already, or the manifest is wrong.
        InputError: With all faults of all cases.
        ResourceError: If what was planned does not fit into memory or disk, or nothing can be written.
    """
    fingerprint_path = config.with_suffix(".fingerprint.json")
    _check_output(config)
    study = _read_study(data, labels)
    with progress_bar("Measuring cases", len(study.cases)) as advance:
        fingerprint = survey_study(study, advance)
    machine = _find_machine()
    names_labels = labels is not None or _is_csv(data)
    planned = plan_job(fingerprint, machine, minutes, data.absolute(), names_labels=names_labels)
    estimate = estimate_job(planned.job)
    steps = planned.job.training.steps_per_epoch
    planned = planned.changed(pace(steps, estimate.step_s, estimate.validation_s))
    estimate = estimate.with_budget(planned.job.training)
    result = PlanResult(config, fingerprint_path, describe_study(fingerprint), estimate, _advise(estimate))
    write_text(fingerprint_path, fingerprint.to_json())
    values = planned.to_mapping(_manifest_seen_from(config, data))
    write_text(config, commented_yaml(values, planned.reasons, _heading(result, machine)))
    return result


def _check_output(config: Path) -> None:
    if config.suffix not in (".yaml", ".yml"):
        raise ConfigError(Fault(str(config), "file-type", "a config is a .yaml file; name it so"))
    if config.exists():
        message = "it is there already, perhaps edited by hand; choose another name or remove it"
        raise ConfigError(Fault(str(config), "file-exists", message))
    check_writable(config.parent)


def _read_study(data: Path, labels: Mapping[str, int] | None) -> Study:
    """The study with its labels: those given, those of the manifest, or for a CSV those that are found."""
    if labels is None and _is_csv(data):
        labels = _find_labels(data)
    try:
        section = DataSection(manifest=data, labels=None if labels is None else dict(labels))
    except ValidationError as error:
        message = "each name needs its own value from 0, the background, to 65535, as in background=0,liver=1"
        raise ConfigError(Fault("--labels", "labels", message)) from error
    return read_manifest(section)


def _find_labels(data: Path) -> dict[str, int]:
    """The labels of a CSV's label maps, by number; names that it calls labelled are none of them."""
    manifest = parse_manifest(data)
    if faults := [*manifest.faults, *entry_faults(manifest.entries)]:
        raise InputError(faults)
    cases = [Case(entry.id, entry.patient, entry.images, entry.label) for entry in manifest.entries]
    with progress_bar("Finding labels", len(cases)) as advance:
        labels = find_labels(cases, advance)
    named = dict.fromkeys(name for entry in manifest.entries for name in entry.labelled or ())
    if unknown := [name for name in named if name not in labels]:
        example = ",".join(["background=0", *(f"{name}={n}" for n, name in enumerate(named, 1))])
        message = (
            f"the column `labelled` names {', '.join(unknown)[:200]}, and only you know the values of these "
            f"structures; give them, such as --labels {example[:200]}"
        )
        raise ConfigError(Fault(str(data), "missing-labels", message))
    return labels


def _is_csv(data: Path) -> bool:
    return data.suffix.lower() == ".csv"


def _find_machine() -> Machine:
    device = select_device("auto")
    num_cores = torch.get_num_threads()
    if device.type == "cuda":
        name, free = torch.cuda.get_device_name(device), torch.cuda.mem_get_info(device)[0]
        return Machine("cuda", name, num_cores, free)
    name = f"{num_cores} CPU core{'s' * (num_cores > 1)}"
    has_units = training_dtype(device, mixed=True) == torch.bfloat16
    return Machine("cpu", name + " with bfloat16" * has_units, num_cores, available_bytes(), has_units)


def _manifest_seen_from(config: Path, data: Path) -> Path:
    """The manifest as the config names it: one given relative to here, relative to the config's folder.

    A link stays one, since images are looked for beside it.
    """
    if data.is_absolute():
        return data
    return Path(os.path.relpath(data.parent.resolve() / data.name, config.parent.resolve()))


def _heading(result: PlanResult, machine: Machine) -> list[str]:
    return [
        f"Written by clinseg {pipeline.__version__}, `clinseg plan`, for {machine.name} with "
        f"{format_size(machine.free_memory)} of free memory.",
        "",
        *result.study,
        f"(more in {result.fingerprint.name})",
        "",
        "Training it here, estimated from 20 steps:",
        *result.estimate.lines(),
        *result.advice,
    ]


def _advise(estimate: Estimate) -> list[str]:
    if estimate.num_steps >= _FEW_STEPS:
        return []
    return [
        f"Only {estimate.num_steps} steps are few to learn from: is the machine busy? Else give more minutes."
    ]
