"""What a classifier's answer rests on, drawn over its image."""

from __future__ import annotations

from pathlib import Path

from pipeline.data.cases import Case
from pipeline.data.pictures import is_picture
from pipeline.inference.classifier import ClassPredictor, ClassReport
from pipeline.inference.explain import Method
from pipeline.report.explanation import draw_explanation
from pipeline.volume import Volume


def draw_answer(
    path: Path, predictor: ClassPredictor, case: Case, report: ClassReport, name: str, method: Method
) -> Volume:
    """Draws how much each voxel mattered for the score of the class `name`.

    Returns:
        The map, on the image's own grid.
    """
    image, values = predictor.explain(case, name, method)
    found = Volume(values, image.grid)
    draw_explanation(
        path,
        image=image,
        values=found,
        method=method,
        case=case.id,
        class_name=name,
        probability=report.probabilities[predictor.classes.index(name)],
        has_geometry=case.row is None and not is_picture(case.images[0]),
    )
    return found
