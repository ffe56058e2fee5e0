"""Between files and the typed job: load with every fault named at its place, and write back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from pipeline.config.classification import ClassificationJob
from pipeline.config.enhancement import EnhancementJob
from pipeline.config.explaining import explained, shown
from pipeline.config.schema import JOBS, Job
from pipeline.config.sections import Section
from pipeline.config.segmentation import SegmentationJob
from pipeline.config.strict_yaml import MAX_BYTES, Document, KeyPath, dotted, read_yaml, write_yaml
from pipeline.errors import ConfigError, Fault

AnySection = TypeVar("AnySection", bound=Section)


def load_job(path: Path, overrides: Sequence[str] = ()) -> Job:
    """Loads a job from a YAML file.

    Args:
        path: The config file. Relative paths in it count from its folder.
        overrides: `key.path=value` settings that win over the file, the last one first. Relative paths in
            them count from the current folder.

    Returns:
        The job, every path in it absolute.

    Raises:
        ConfigError: With all faults of file and overrides, each at its `file:line:column` or `--set` text.
    """
    document = _read(path)
    overridden: set[KeyPath] = set()
    for override in overrides:
        key, document = _overridden(document, override)
        overridden.add(key)

    def folder_of(setting: KeyPath) -> Path:
        is_overridden = any(setting[: len(key)] == key for key in overridden)
        return Path.cwd() if is_overridden else path.absolute().parent

    return _anchored(_validated(document), (), folder_of)


def segmentation_job(job: Job) -> SegmentationJob:
    """The job, where nothing but a segmentation will do.

    Raises:
        ConfigError: If it is another.
    """
    if isinstance(job, SegmentationJob):
        return job
    raise ConfigError(Fault("task", "other-task", f"this is for segmentation, and the job is a {job.task}"))


def classification_job(job: Job) -> ClassificationJob:
    """The job, where nothing but a classification will do.

    Raises:
        ConfigError: If it is another.
    """
    if isinstance(job, ClassificationJob):
        return job
    raise ConfigError(Fault("task", "other-task", f"this is for classification, and the job is a {job.task}"))


def enhancement_job(job: Job) -> EnhancementJob:
    """The job, where nothing but an enhancement will do.

    Raises:
        ConfigError: If it is another.
    """
    if isinstance(job, EnhancementJob):
        return job
    raise ConfigError(Fault("task", "other-task", f"this is for enhancement, and the job is a {job.task}"))


def on_fold(job: Job, fold: int) -> Job:
    """The same job with that fold held out."""
    return job.model_copy(update={"data": job.data.model_copy(update={"fold": fold})})


def flipped_axes(job: Job) -> tuple[int, ...]:
    """Array axes along which mirrored copies are averaged in prediction; none without `inference.flips`."""
    return job.augmentation.mirror_axes if job.inference.flips else ()


def job_from_mapping(values: Mapping[str, object]) -> Job:
    """The job behind JSON-able values, such as those of `job_to_mapping`; relative paths stay as they are.

    Raises:
        ConfigError: With all faults, each at its dotted key.
    """
    return _validated(Document(values))


def job_to_mapping(job: Job) -> dict[str, object]:
    """JSON-able values of every setting, from which `job_from_mapping` makes the same job again."""
    return job.model_dump(mode="json")


def job_to_yaml(job: Job) -> str:
    """A complete config file, from which `load_job` makes the same job again."""
    return write_yaml(job_to_mapping(job))


def job_parameters(job: Job) -> dict[str, str]:
    """Every setting as text under its dotted key, such as `training.learning_rate`: `0.004`."""
    return {
        dotted(path): value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for path, value in _settings(job, ())
    }


def job_schema() -> dict[str, object]:
    """The JSON schema (draft 2020-12) of a config file, for completion and help in editors."""
    kinds = Annotated[Job, Field(discriminator="task")]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **TypeAdapter(kinds).json_schema()}


def _read(path: Path) -> Document:
    document = read_yaml(_text(path), lambda line, column: f"{path}:{line}:{column}")
    if isinstance(document.values, dict):
        return document
    message = f"expected a mapping with the sections of a job, got {shown(document.values)}"
    raise ConfigError([*document.faults, Fault(document.where(()), "not-a-mapping", message)])


def _text(path: Path) -> str:
    try:
        if path.is_dir() or not path.is_file():
            what = "a folder" if path.is_dir() else "no regular file" if path.exists() else "absent"
            raise ConfigError(Fault(str(path), "not-a-file", f"expected a config file, but this is {what}"))
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(Fault(str(path), "not-readable", f"it cannot be read ({reason})")) from error
    if len(content) > MAX_BYTES:
        message = f"a config file has at most {MAX_BYTES} bytes; is this one at all?"
        raise ConfigError(Fault(str(path), "too-large", message))
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        where, message = f"{path}:{line}:{column}", "this byte is not UTF-8; save the file as UTF-8"
        raise ConfigError(Fault(where, "not-utf8", message)) from None


def _overridden(document: Document, override: str) -> tuple[KeyPath, Document]:
    """The path that `override` sets, and the document with it set."""
    where = f"--set {override}"
    key, equals, text = override.partition("=")
    path: KeyPath = tuple(key.strip().split("."))
    if not equals or not all(path):
        message = "expected `key.path=value`, such as `training.epochs=3`"
        return path, _with_faults(document, Fault(where, "override-syntax", message))
    try:
        return path, _put(document, path, read_yaml(text, lambda _line, _column: where, root=path))
    except ConfigError as error:
        return path, _with_faults(document, *error.faults)


def _put(document: Document, path: KeyPath, new: Document) -> Document:
    """The document with `new`, whose paths begin with `path`, in the place of what stood there."""
    values: dict[str | int, Any] = dict(document.values)
    inner = values
    for end, part in enumerate(path[:-1], start=1):
        below = inner.get(part)
        if not isinstance(below, dict | None):
            message = f"`{dotted(path[:end])}` is {shown(below)}, which has no keys to set; set it as a whole"
            raise ConfigError(Fault(new.where(path), "not-a-mapping", message))
        inner[part] = dict(below or {})
        inner = inner[part]
    inner[path[-1]] = new.values
    kept = {p: where for p, where in document.marks.items() if p[: len(path)] != path}
    around = {path[:end]: new.where(path) for end in range(1, len(path))}
    return Document(
        values,
        {**around, **kept, **new.marks},
        (*document.faults, *new.faults),
        document.refused | new.refused,
    )


def _with_faults(document: Document, *faults: Fault) -> Document:
    return replace(document, faults=(*document.faults, *faults))


def _validated(document: Document) -> Job:
    faults = list(document.faults)
    values = document.values
    task = values.get("task", "segmentation") if isinstance(values, dict) else "segmentation"
    kind = JOBS.get(task) if isinstance(task, str) else None
    if kind is None:
        message = f"`task`: expected {' or '.join(map(repr, JOBS))}, got {shown(task)}"
        raise ConfigError([*faults, Fault(document.where(("task",)), "wrong-value", message)])
    try:
        job = kind.model_validate(document.values)
    except ValidationError as error:
        faults += explained(error, document, kind)
    if faults:
        raise ConfigError(faults)
    return job


def _anchored(section: AnySection, path: KeyPath, folder_of: Callable[[KeyPath], Path]) -> AnySection:
    """The section with every path in it made absolute."""
    changes: dict[str, object] = {}
    for name in type(section).model_fields:
        value, inner = getattr(section, name), (*path, name)
        if isinstance(value, Section):
            changes[name] = _anchored(value, inner, folder_of)
        elif isinstance(value, Path):
            changes[name] = folder_of(inner) / value
    return section.model_copy(update=changes)


def _settings(section: Section, path: KeyPath) -> Iterator[tuple[KeyPath, object]]:
    """Every setting that is not itself a section, with its JSON-able value."""
    values = section.model_dump(mode="json")
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _settings(value, (*path, name))
        else:
            yield (*path, name), values[name]
