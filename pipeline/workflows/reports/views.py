"""Which cases a report shows, and what is read of them: no mask over an image that it was not made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from pipeline.data.cases import Case
from pipeline.data.images import read_image, read_label_map
from pipeline.errors import ConfigError, Fault, FaultError
from pipeline.inference.cohort import hash_inputs
from pipeline.report.case_tables import name_rank, rank_cases
from pipeline.report.content import Picture, View
from pipeline.report.figures import draw_overlay, drawn_values
from pipeline.volume import Volume
from pipeline.workflows.reports.material import ReportMaterial


def choose_cases(material: ReportMaterial, wanted: Sequence[str]) -> list[tuple[str, str]]:
    """Ids of the cases to show, each with its rank: those wanted, else the worst, the median and the best.

    Where nothing says which is best, volumes take the place of Dice.

    Raises:
        ConfigError: If a wanted case has no mask.
    """
    ranked, names, by = _rank(material)
    if unknown := [case for case in wanted if case not in material.masks]:
        faults = []
        for case in unknown:
            near = get_close_matches(case, material.masks, n=3, cutoff=0.4) or sorted(material.masks)[:3]
            message = f"there is no mask of a case with this id; the nearest are {', '.join(near) or 'none'}"
            faults.append(Fault(f"--cases {case}", "case-unknown", message))
        raise ConfigError(faults)
    last = len(ranked) - 1
    chosen = list(wanted) or [ranked[place] for place in dict.fromkeys((0, last // 2, last)) if ranked]
    places = {case: name_rank(place, len(ranked), names) for place, case in enumerate(ranked)}
    return [
        (case, f"{places[case]} of {len(ranked)} by {by}" if case in places else "not judged")
        for case in chosen
    ]


def _rank(material: ReportMaterial) -> tuple[list[str], tuple[str, str, str], str]:
    if material.rows:
        ranked = [case for case in rank_cases(material.rows) if case in material.masks]
        return ranked, ("worst", "median", "best"), "Dice"
    volumes = {
        case: sum((material.entries[case].get("volumes_ml") or {}).values())
        for case in material.masks
        if case in material.entries
    }
    ranked = sorted(volumes, key=lambda case: (volumes[case], case))
    return ranked, ("smallest", "median", "largest"), "volume of all structures"


def read_view(material: ReportMaterial, case: str, rank: str, remarks: list[str]) -> View:
    """Reads a case to be shown; what cannot be shown of it becomes a remark.

    Raises:
        FaultError: If its mask cannot be read.
    """
    prediction = read_label_map(material.masks[case])
    found = material.cases.get(case)
    maps = {"Prediction": prediction}
    label = found.label if found else None
    reference = None
    if label is not None:
        reference = _read_beside(lambda: read_label_map(label), case, "reference", prediction, remarks)
    if reference is not None:
        integers = reference.array.astype(np.uint32 if reference.array.dtype.itemsize > 2 else np.uint16)
        maps = {"Reference": Volume(integers, reference.grid), **maps}
    image = _read_image(material, found, prediction, remarks) if found and found.images else None
    labels = material.labels
    judged = {row.structure for row in material.rows if row.case == case}
    unlabelled = {
        value
        for name, values in labels.structures.items()
        for value in values
        if material.rows and name not in judged
    }
    ignored = {} if labels.ignore_value is None else {"ignored": labels.ignore_value}
    view = View(
        case=case,
        rank=rank,
        maps=maps,
        image=image,
        values=drawn_values({**labels.names, **ignored}, maps),
        colours=labels.colours,
        ignore_value=labels.ignore_value,
        unlabelled=frozenset(unlabelled),
        slices=None,
    )
    return replace(view, slices=_draw_slices(material, view))


def _read_image(
    material: ReportMaterial, found: Case, prediction: Volume, remarks: list[str]
) -> Volume | None:
    """The first channel, if it is the very file that the mask was made from."""
    told = material.entries.get(found.id, {}).get("input_hashes")
    try:
        is_same = not told or set(hash_inputs(found)) <= set(told)
    except (OSError, FaultError):
        is_same = True  # reading it says why it cannot be read
    if not is_same:
        remarks.append(f"{found.id}: the image is not the one that was predicted, so it is not shown.")
        return None
    return _read_beside(lambda: read_image(*found.sources[0])[0], found.id, "image", prediction, remarks)


def _read_beside(
    read: Callable[[], Volume], case: str, what: str, prediction: Volume, remarks: list[str]
) -> Volume | None:
    """A volume on the prediction's grid; None, with a remark, if it cannot be read or lies elsewhere."""
    try:
        volume = read()
    except FaultError as error:
        remarks += [
            f"{case}: the {what} is not shown; {fault.message} [{fault.rule}]" for fault in error.faults
        ]
        return None
    if not volume.grid.is_close_but_for_rounding(prediction.grid):
        remarks.append(f"{case}: the {what} lies on another grid than the mask, so it is not shown.")
        return None
    return volume


def _draw_slices(material: ReportMaterial, view: View) -> Picture:
    """The case as a picture: the one that was drawn at the end of the training, if there is one."""
    caption = f"{view.case}, {view.rank}: the image, the reference and the prediction, where they are known."
    drawn = material.overlays.get(view.case)
    if drawn is not None:
        return Picture(caption, drawn.read_bytes())
    prediction = view.maps["Prediction"]
    nothing = Volume(np.zeros(prediction.grid.shape, np.uint8), prediction.grid)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "slices.png"
        draw_overlay(
            path,
            image=view.image or nothing,
            prediction=prediction,
            reference=view.maps.get("Reference"),
            labels=material.labels.names,
            title=view.case,
            unlabelled=view.unlabelled,
            ignore_value=view.ignore_value,
            colours=view.colours,
        )
        return Picture(caption, path.read_bytes())


def read_views(
    material: ReportMaterial, chosen: Sequence[tuple[str, str]], remarks: list[str]
) -> Iterator[View]:
    """The cases one after the other; one whose mask cannot be read becomes a remark."""
    for case, rank in chosen:
        try:
            yield read_view(material, case, rank, remarks)
        except FaultError as error:
            remarks += [f"{case}: not shown; {fault.message} [{fault.rule}]" for fault in error.faults]
