"""From a patient's images to calibrated probabilities, with everything taken from the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.calibration import Calibration
from pipeline.checkpoint import Checkpoint
from pipeline.config import ClassificationJob, classification_job, flipped_axes, job_from_mapping
from pipeline.data.case_images import read_case_images, read_case_with_warnings
from pipeline.data.cases import Case
from pipeline.data.class_images import bring_to_size, class_chain
from pipeline.data.dicom import SeriesRule
from pipeline.data.images import source_hash
from pipeline.data.regions import Regions
from pipeline.errors import Fault, FaultError, IntegrityError, ResourceError
from pipeline.inference.classifying import compute_logits
from pipeline.inference.explain import Method, explain, to_patient_grid
from pipeline.inference.predictor import check_preparing, preparing_bytes
from pipeline.inference.regions import build_regions
from pipeline.memory import memory_faults
from pipeline.networks import Classifier, build_classifier
from pipeline.precision import autocast, inference_dtype
from pipeline.volume import Volume


@dataclass(frozen=True, slots=True)
class ClassReport:
    """What became of one case.

    Attributes:
        case: Its id.
        logits: Of each class, before calibration.
        probabilities: Of each class, calibrated.
        predicted: Names of the classes it is of; of exclusive ones just one.
        confidence: See `Calibration.confidence`.
        review: Whether a person should look.
        input_hashes: SHA-256 of each input file, that of the label map behind those of the images.
        warnings: What was odd about the input.
        exports: SHA-256 of the answer in each further form, by the form's name.
        faults: Why there is no prediction, or none of its further forms.
    """

    case: str
    logits: tuple[float, ...] = ()
    probabilities: tuple[float, ...] = ()
    predicted: tuple[str, ...] = ()
    confidence: float | None = None
    review: bool = True
    input_hashes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    exports: dict[str, str] | None = None
    faults: tuple[Fault, ...] = ()


class ClassPredictor:
    """Trained classifiers with their preprocessing and what their logits mean.

    Args:
        job: The job that trained them.
        classes: Their names, in the order of the outputs.
        channels: Names of the image channels.
        networks: With trained weights; of several the mean of the logits counts.
        calibration: From logits to answers.
        device: Where to compute.
        regions: Tells where in an image to look; None for the whole of it.
    """

    def __init__(
        self,
        job: ClassificationJob,
        classes: Sequence[str],
        channels: Sequence[str],
        networks: Sequence[Classifier],
        calibration: Calibration,
        device: torch.device,
        regions: Regions | None = None,
    ) -> None:
        self.job = job
        self.classes = tuple(classes)
        self.num_channels = len(channels)
        self.calibration = calibration
        self.device = device
        self.regions = regions
        self.networks = [network.to(device).eval() for network in networks]
        self._dtype = inference_dtype(device, mixed=job.training.mixed_precision)

    def classify(
        self, cases: Sequence[Case], on_case: Callable[[ClassReport], None] = lambda report: None
    ) -> list[ClassReport]:
        """Classifies every case; while some are computed, others are read. A broken case costs only itself.

        Args:
            cases: Their classes are not looked at, their label maps only if these tell the region.
            on_case: Is told each report.

        Returns:
            One report per case, in their order.
        """
        reports: list[ClassReport] = []
        files: dict[tuple[Path, SeriesRule], str] = {}
        with ThreadPoolExecutor(max_workers=1) as reader:
            size = self.job.inference.batch_size
            chunks = [cases[first : first + size] for first in range(0, len(cases), size)]
            pending = [reader.submit(self._read, chunk, files) for chunk in chunks[:1]]
            for number in range(len(chunks)):
                read = pending.pop(0).result()
                if number + 1 < len(chunks):
                    pending.append(reader.submit(self._read, chunks[number + 1], files))
                for report in self._answer(read):
                    reports.append(report)
                    on_case(report)
        return reports

    def answer_again(self, reports: Sequence[ClassReport]) -> list[ClassReport]:
        """The same logits, with what they mean by now."""
        answers = self._describe(np.array([report.logits for report in reports]))
        return [replace(report, **answer) for report, answer in zip(reports, answers, strict=True)]

    def explain(self, case: Case, name: str, method: Method) -> tuple[Volume, NDArray[np.float32]]:
        """How much each voxel mattered for the score of the class `name`: the mean over the networks.

        Returns:
            The first channel of the image as stored, and the map on its grid.

        Raises:
            InputError: If the image cannot be read, or its region is not found.
        """
        volumes = read_case_images(case, self.num_channels)
        section = self.job.preprocessing
        prepared = bring_to_size(case, volumes, section, self.regions)
        image = prepared.image if len(section.size) == 3 else prepared.image[..., 0]
        target, known = self.classes.index(name), self.calibration

        def activation(logits: Tensor) -> Tensor:
            scaled = logits / known.temperature
            return scaled.sigmoid() if known.multi_label else scaled.softmax(1)

        maps = [
            explain(network, image.to(self.device), target, method, activation=activation)
            for network in self.networks
        ]
        found = torch.stack(maps).mean(0)
        return volumes[0], to_patient_grid(found, prepared.affine, volumes[0].grid)

    def logits(self, images: Sequence[Tensor]) -> Tensor:
        """`(N, K)` float32 on the CPU, of images `(C, *size)`; the mean over networks and mirrored copies.

        Raises:
            ResourceError: If not even one image fits into memory.
            IntegrityError: If they are not numbers.
        """
        section = self.job.inference
        axes = flipped_axes(self.job)
        try:
            with autocast(self.device, self._dtype):
                found = [
                    compute_logits(network, images, section.batch_size, self.device, axes)
                    for network in self.networks
                ]
        except torch.OutOfMemoryError as error:
            message = "not even one image fits into the memory that is free; end other programs"
            raise ResourceError(Fault("prediction", "out-of-memory", message)) from error
        logits = torch.stack(found).mean(0)
        if not bool(logits.isfinite().all()):
            message = "its logits are not numbers; the model is damaged or its precision does not suffice"
            raise IntegrityError(Fault("prediction", "not-a-number", f"{message}, train it again"))
        return logits

    def _read(
        self, cases: Sequence[Case], files: dict[tuple[Path, SeriesRule], str]
    ) -> list[tuple[Case, Tensor | None, ClassReport]]:
        return [self._read_case(case, files) for case in cases]

    def _read_case(
        self, case: Case, files: dict[tuple[Path, SeriesRule], str]
    ) -> tuple[Case, Tensor | None, ClassReport]:
        section = self.job.preprocessing
        try:
            with memory_faults(case.id):
                reading = read_case_with_warnings(case, self.num_channels)
                grid = reading.volumes[0].grid
                check_preparing(case.id, preparing_bytes(class_chain(section), self.num_channels, grid))
                prepared = bring_to_size(case, reading.volumes, section, self.regions)
        except FaultError as error:
            return case, None, ClassReport(case.id, faults=error.faults)
        image = prepared.image if len(section.size) == 3 else prepared.image[..., 0]
        warnings = tuple(str(warning) for warning in reading.warnings)
        told = () if self.regions is None else self.regions.files(case)
        sources = (*case.sources, *((path, SeriesRule()) for path in told))
        hashes = tuple(_hash_once(path, rule, files) for path, rule in sources)
        return case, image, ClassReport(case.id, input_hashes=hashes, warnings=warnings)

    def _answer(self, read: Sequence[tuple[Case, Tensor | None, ClassReport]]) -> list[ClassReport]:
        images = [image for _, image, _ in read if image is not None]
        if not images:
            return [report for *_, report in read]
        answers = iter(self._describe(self.logits(images).double().numpy()))
        return [report if image is None else replace(report, **next(answers)) for _, image, report in read]

    def _describe(self, logits: NDArray[np.float64]) -> Iterator[dict[str, Any]]:
        """What a report says of each row of logits."""
        known = self.calibration
        probabilities = known.probabilities(logits)
        decided = known.decide(probabilities)
        confidence, review = known.confidence(probabilities), known.needs_review(probabilities)
        for number, answer in enumerate(decided):
            chosen = np.flatnonzero(answer) if known.multi_label else [int(answer)]
            yield {
                "logits": tuple(map(float, logits[number])),
                "probabilities": tuple(map(float, probabilities[number])),
                "predicted": tuple(self.classes[index] for index in chosen),
                "confidence": float(confidence[number]),
                "review": bool(review[number]),
            }


def load_class_predictor(checkpoint: Checkpoint, device: torch.device) -> ClassPredictor:
    """Builds the networks that a checkpoint describes.

    Raises:
        ConfigError: If it is no classifier's.
    """
    job = classification_job(job_from_mapping(checkpoint.job))
    networks = []
    for member in checkpoint.members or (checkpoint,):
        num_channels, num_classes = len(checkpoint.channels), len(checkpoint.structures)
        network = build_classifier(job.network, num_channels, num_classes)
        network.load_state_dict(member.weights)
        networks.append(network)
    calibration = _read_calibration(checkpoint.calibration, job, num_classes)
    classes = tuple(checkpoint.structures)
    shown = checkpoint.channels[: num_channels - job.preprocessing.shows_region]
    regions = build_regions(job.data, checkpoint.segmenter, len(shown), device)
    return ClassPredictor(job, classes, shown, networks, calibration, device, regions)


def _read_calibration(
    mapping: Mapping[str, object] | None, job: ClassificationJob, num_classes: int
) -> Calibration:
    if mapping is not None:
        return Calibration.from_mapping(mapping)
    # While it is trained, or with no validation case: even odds, and nothing is known of confidence.
    num_thresholds = num_classes if job.data.multi_label else int(num_classes == 2)
    return Calibration(
        job.data.multi_label, 1.0, (0.5,) * num_thresholds, 0.0, job.inference.coverage, 0, None, None
    )


def _hash_once(path: Path, rule: SeriesRule, files: dict[tuple[Path, SeriesRule], str]) -> str:
    """SHA-256 of a file, or of those of a series; a file of many images is read once."""
    if (path, rule) not in files:
        files[path, rule] = source_hash(path, rule)
    return files[path, rule]
