"""Registered models of an old file store: names, versions, aliases, and stages, which became aliases."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from pipeline.tracking.store import all_pages, is_absent

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

_ORIGIN_TAG: Final = "clinseg.imported_from"  # number of the version in the folder
_STAGE_TAG: Final = "clinseg.stage"
_STAGES: Final = ("Production", "Staging")  # MLflow gave up stages for aliases


def import_models(
    old: MlflowClient, target: MlflowClient, new_ids: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Copies every version whose files came with a run, or lie on a server; what was copied before stays.

    An alias that the target gave to another version stays there. Numbers are given anew, in the old order.

    Args:
        old: Where the models are.
        target: Where they go.
        new_ids: The target's runs by the ids that they had.

    Returns:
        The versions that are new, such as `prostate/3` (its old number), and why others were left behind.
    """
    imported: list[str] = []
    left: list[str] = []
    for model in all_pages(old.search_registered_models):
        numbers: dict[str, str] = {}
        versions = all_pages(old.search_model_versions, filter_string=f"name = '{model.name}'")
        versions.sort(key=lambda version: int(version.version))
        for version in versions:
            name = f"{model.name}/{version.version}"
            known = _find(target, version)
            if known is None and (source := _source(target, version, new_ids)) is not None:
                known = _copy(target, model, version, source, new_ids)
                imported.append(name)
            if known is None:
                left.append(f"{name}: its files are in no run that came along ({version.source})")
            else:
                numbers[str(version.version)] = known
        _point_aliases(target, model.name, dict(_aliases(model, versions)), numbers)
    return imported, left


def _find(target: MlflowClient, version: ModelVersion) -> str | None:
    """The number of the version that was imported from this one."""
    where = f"name = '{version.name}' and tags.`{_ORIGIN_TAG}` = '{version.version}'"
    return next((str(found.version) for found in target.search_model_versions(where)), None)


def _source(target: MlflowClient, version: ModelVersion, new_ids: Mapping[str, str]) -> str | None:
    """Where its files are now: among those of its run, unless they lie on a server; None if they are gone."""
    said = str(version.source)
    if urlsplit(said).scheme not in ("", "file", "models"):
        return said
    inside = re.search(rf"/{version.run_id}/artifacts/(.+)", said) if version.run_id else None
    run_id = new_ids.get(str(version.run_id))
    if inside is None or run_id is None:
        return None
    path = inside[1].rstrip("/")
    folder = path.rpartition("/")[0] or None
    if path not in {file.path for file in target.list_artifacts(run_id, folder)}:
        return None
    return f"{target.get_run(run_id).info.artifact_uri}/{path}"


def _copy(
    target: MlflowClient,
    model: RegisteredModel,
    version: ModelVersion,
    source: str,
    new_ids: Mapping[str, str],
) -> str:
    try:
        target.get_registered_model(model.name)
    except Exception as error:  # MLflow's own
        if not is_absent(error):
            raise
        target.create_registered_model(model.name, model.tags, model.description)
    tags = {**version.tags, _ORIGIN_TAG: str(version.version)}
    if version.current_stage not in (None, "None"):
        tags[_STAGE_TAG] = str(version.current_stage)
    run_id = new_ids.get(str(version.run_id))
    made = target.create_model_version(model.name, source, run_id, tags, description=version.description)
    return str(made.version)


def _aliases(model: RegisteredModel, versions: list[ModelVersion]) -> Iterator[tuple[str, str]]:
    """Which version each alias stands for; of several in a stage the newest, as MLflow loaded it."""
    for version in versions:
        if version.current_stage in _STAGES:
            yield version.current_stage.lower(), str(version.version)
    yield from ((alias, str(number)) for alias, number in model.aliases.items())


def _point_aliases(
    target: MlflowClient, name: str, aliases: Mapping[str, str], numbers: Mapping[str, str]
) -> None:
    wanted = {alias: numbers[old] for alias, old in aliases.items() if old in numbers}
    taken = target.get_registered_model(name).aliases if wanted else {}
    for alias, number in wanted.items():
        if alias not in taken:
            target.set_registered_model_alias(name, alias, number)
