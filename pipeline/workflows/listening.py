"""`clinseg listen`: studies that arrive are predicted, and their segmentations go back, each exactly once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Final

from pipeline.checkpoint import Checkpoint
from pipeline.data.dicom import SeriesRule
from pipeline.data.images import find_inputs
from pipeline.errors import ConfigError, Fault, FaultError, ResourceError, Stopped
from pipeline.export.exporters import SEGMENTATION, export_path
from pipeline.export.label_table import write_label_table
from pipeline.files import check_writable
from pipeline.inference.cohort import CaseReport, hash_inputs, predict_cohort
from pipeline.inference.exporting import Exports
from pipeline.inference.predictor import Predictor, load_predictor, select_device
from pipeline.memory import freed_memory_kept
from pipeline.pacs.address import check_aet, parse_address, parse_endpoint
from pipeline.pacs.connecting import connect
from pipeline.pacs.desk import Desk, alone_in
from pipeline.pacs.entries import Standing, Waiting
from pipeline.pacs.queue import NAME, Queue
from pipeline.pacs.sending import Courier
from pipeline.signals import StopSignals
from pipeline.workflows.applying.case_reports import describe_maker, describe_model, mask_hashes
from pipeline.workflows.auditing import AuditLog
from pipeline.workflows.runs.models import load_model

_MAX_STARTS: Final = 3
_BATCH: Final = 16
_POLL_S: Final = 0.2
_DAY_S: Final = 86400.0

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Manner:
    """How to listen.

    Attributes:
        at: `host:port` to bind.
        aet: Our title.
        allowed: Titles of those who may send.
        settle_s: Seconds without a new instance after which a study is complete.
        keep_days: After which the images of an answered study are removed.
        rules: Which series of a study each channel is.
        device: `auto`, `cpu` or `cuda`.
    """

    at: str
    aet: str
    allowed: tuple[str, ...]
    settle_s: float
    keep_days: float
    rules: tuple[SeriesRule, ...]
    device: str


def listen(model: str, folder: Path, target: str, manner: Manner, tell: Tell = lambda text: None) -> None:
    """Receives studies, predicts each, and sends its segmentation to a PACS, until it is stopped.

    Whatever it is stopped by, the same call goes on where it was.

    Args:
        model: A run, `latest`, a checkpoint file or `models:/name@alias`; it is looked up once.
        folder: For the queue, what arrives and what is predicted.
        target: Address of the PACS that gets segmentations.
        manner: How.
        tell: Is told what happens, without names.

    Raises:
        FaultError: If it cannot begin, or the disk is full.
        Stopped: At a signal.
    """
    pacs = connect(parse_address(target, "--to"), check_aet(manner.aet, "--aet"))
    endpoint = parse_endpoint(manner.at, "--at")
    _check(manner)
    checkpoint = load_model(model)
    _refuse_task(checkpoint)
    from pipeline.pacs.receiving import receiving  # noqa: PLC0415 - of an extra

    with ExitStack() as stack:
        # `Stopped` raised at any moment could leave the queue locked for this very thread, which ends it.
        signals = stack.enter_context(StopSignals())
        stack.enter_context(signals.deferred())
        device = select_device(manner.device)
        predictor = load_predictor(checkpoint, device, before_pass=signals.check)
        stack.enter_context(alone_in(folder))
        queue = Queue(folder)
        stack.callback(queue.close)
        desk = Desk(queue, folder / "incoming", manner.settle_s, manner.keep_days * _DAY_S, tell)
        reader = _Reader(queue, desk, predictor, checkpoint, folder, manner.rules, tell)
        courier = Courier(pacs, queue, reader.model, reader.path_of, tell)
        stack.enter_context(courier.working())
        stack.enter_context(receiving(manner.aet, endpoint, manner.allowed, desk))
        tell(f"listening as {manner.aet} on {manner.at} for {', '.join(manner.allowed)}; sending to {target}")
        stack.enter_context(freed_memory_kept())
        try:
            reader.work(courier, signals)
        except Stopped:
            raise Stopped("the same command goes on with what waits") from None


def standings(folder: Path, *, retry: bool = False) -> list[Standing]:
    """Where every study in a listener's folder stands.

    Args:
        folder: That the listener was given.
        retry: Whether to take up again first what is parked; a listener that runs sees it.

    Raises:
        ConfigError: If there is no queue.
    """
    if not (folder / NAME).is_file():
        message = "no listener worked here; name the folder that `clinseg listen` was given"
        raise ConfigError(Fault(str(folder), "no-queue", message))
    queue = Queue(folder)
    try:
        if retry:
            queue.retry()
        return queue.standings()
    finally:
        queue.close()


class _Reader:
    """Predicts what is complete; the model is loaded once."""

    def __init__(
        self,
        queue: Queue,
        desk: Desk,
        predictor: Predictor,
        checkpoint: Checkpoint,
        folder: Path,
        rules: Sequence[SeriesRule],
        tell: Tell,
    ) -> None:
        self.model = checkpoint.content_hash or ""
        self.folder = folder / "results" / self.model[:12]
        self._queue, self._desk, self._tell = queue, desk, tell
        self._predictor, self._rules = predictor, rules
        self._exports = Exports((SEGMENTATION,), describe_maker(checkpoint, "segmentation model"))
        check_writable(self.folder)
        write_label_table(self.folder / "labels.txt", predictor.contract)
        self._log = AuditLog(self.folder, describe_model(checkpoint, predictor.device))

    def path_of(self, study: str) -> Path:
        """The file of a study's answer."""
        return export_path(self.folder, SEGMENTATION, study)

    def work(self, courier: Courier, signals: StopSignals) -> None:
        """Until a signal, or until nothing can be sent any more."""
        pause = Event()
        try:
            while not courier.failures:
                signals.check()
                if waiting := self._desk.complete(self.model):
                    self._predict(self._choose(waiting))
                else:
                    self._desk.tidy()
                    pause.wait(_POLL_S)
        except (Stopped, ResourceError):  # no study's fault; whatever else ends it counts
            self._queue.leave(self.model)
            raise
        raise courier.failures[0]

    def _choose(self, waiting: Sequence[Waiting]) -> list[Waiting]:
        """What to predict together; something that once did not end comes after all else, and alone."""
        fresh = [study for study in waiting if not study.starts]
        return fresh[:_BATCH] or list(waiting[:1])

    def _predict(self, studies: Sequence[Waiting]) -> None:
        cases = []
        for study in studies:
            try:
                (case,) = find_inputs(
                    [self._desk.folder_of(study.study)], self._predictor.num_channels, self._rules
                )
                if study.inputs is not None and study.inputs == _join(hash_inputs(case)):
                    self._queue.unchanged(study, self.model)
                    continue
            except FaultError as error:
                self._queue.begin(self.model, [study])
                self._park(study.study, "; ".join(map(_say, error.faults)))
                continue
            self._queue.begin(self.model, [study])
            if study.starts >= _MAX_STARTS:
                self._park(study.study, f"predicting it ended the program {study.starts} times")
            else:
                cases.append(case)
        predict_cohort(self._predictor, cases, self.folder, self._keep, exports=self._exports)

    def _keep(self, report: CaseReport) -> None:
        for warning in report.warnings:
            self._tell(f"{report.case}: {warning}")
        self._log.add(report.case, report.input_hashes, mask_hashes(report), report.faults)
        if report.faults:
            self._park(report.case, "; ".join(map(_say, report.faults)))
        else:
            self._queue.predicted(report.case, self.model, _join(report.input_hashes))
            self._tell(f"{report.case}: predicted in {report.seconds:.1f} s")

    def _park(self, study: str, reason: str) -> None:
        self._queue.park(study, self.model, reason)
        self._tell(f"{study}: parked, {reason}")


def _check(manner: Manner) -> None:
    if not manner.allowed:
        message = "name who may send, by --allow AETITLE for each; nobody else can"
        raise ConfigError(Fault("--allow", "nobody-allowed", message))
    for title in manner.allowed:
        check_aet(title, "--allow")
    for option, value in {"--settle": manner.settle_s, "--keep": manner.keep_days}.items():
        if not value > 0:
            raise ConfigError(Fault(option, "not-positive", f"it is a number above 0, not {value:g}"))


def _refuse_task(checkpoint: Checkpoint) -> None:
    if checkpoint.job.get("task") in ("classification", "enhancement"):
        message = "a listener answers with segmentations, and this model makes none"
        raise ConfigError(Fault("model", "other-task", message))


def _join(hashes: Sequence[str]) -> str:
    return " ".join(hashes)


def _say(fault: Fault) -> str:
    return f"{fault.message} [{fault.rule}]"
