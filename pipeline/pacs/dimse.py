"""A PACS by DIMSE: C-FIND to find, C-GET or C-MOVE to fetch, C-STORE to send."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice, product
from pathlib import Path
from threading import Thread
from typing import Any, Final

from pydicom import Dataset, dcmread
from pydicom.uid import UID
from pynetdicom import AE, _config, build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # pynetdicom makes its names as it is imported
    StudyRootQueryRetrieveInformationModelFind as FindModel,
)
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # pynetdicom makes its names as it is imported
    StudyRootQueryRetrieveInformationModelGet as GetModel,
)
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # pynetdicom makes its names as it is imported
    StudyRootQueryRetrieveInformationModelMove as MoveModel,
)

from pipeline.errors import Fault, ServiceError
from pipeline.pacs.address import DimseAddress
from pipeline.pacs.instances import FoundSeries, Instance, Query, is_uid
from pipeline.pacs.receiving import COMMON_CLASSES, SYNTAXES, receiving, store_status

_config.STORE_SEND_CHUNKED_DATASET = True  # a file leaves as it lies there, never decoded

_MAX_CONTEXTS: Final = 128  # an association has no more
_CONNECT_S: Final = 10.0
_ANSWER_S: Final = 120.0
_PENDING: Final = (0xFF00, 0xFF01)
_STORED: Final = (0x0000, 0xB000, 0xB006, 0xB007)  # the latter with a warning


class DimsePacs:
    """See `Pacs`.

    Args:
        address: Of the PACS.
        aet: Our title.
        receive_at: Where images come in, for a PACS that sends (C-MOVE) instead of answering (C-GET).
    """

    def __init__(self, address: DimseAddress, aet: str, receive_at: tuple[str, int] | None = None) -> None:
        self._address = address
        self._where = str(address)
        self._aet = aet
        self._receive_at = receive_at
        self._calling: AE | None = None

    def find(self, query: Query) -> list[FoundSeries]:
        """See `Pacs`."""
        with self._associated([build_context(FindModel)]) as peer:
            studies = self._query(peer, "STUDY", {"StudyInstanceUID": "", **query.keys})
            meant = [
                study.StudyInstanceUID
                for study in studies
                if all(_text(study, keyword) == value for keyword, value in query.keys.items())
                and is_uid(_text(study, "StudyInstanceUID"))
            ]
            return [series for uid in dict.fromkeys(meant) for series in self._find_series(peer, str(uid))]

    def fetch(self, series: FoundSeries, keep: Callable[[Instance], None]) -> None:
        """See `Pacs`."""
        failures: list[BaseException] = []

        def put(instance: Instance) -> None:
            try:
                keep(instance)
            except Exception as error:  # raised in the library's thread: told here as well
                failures.append(error)
                raise

        if self._receive_at is None:
            self._get(series, put)
        else:
            with receiving(self._aet, self._receive_at, [self._address.aet], _Sink(put)):
                self._move(series)
        if failures:
            raise failures[0]

    def send(self, files: Sequence[Path], on_file: Callable[[], None] = lambda: None) -> dict[Path, str]:
        """See `Pacs`. Files leave in the transfer syntax that they lie in."""
        refused: dict[Path, str] = {}
        waiting: dict[tuple[UID, UID], list[Path]] = {}
        for path in files:
            waiting.setdefault(_kind_of(path), []).append(path)
        kinds = iter(waiting)
        while some := list(islice(kinds, _MAX_CONTEXTS)):
            with self._associated([build_context(*kind) for kind in some]) as peer:
                for path in (path for kind in some for path in waiting[kind]):
                    if (reason := self._store(peer, path)) is not None:
                        refused[path] = reason
                    on_file()
        return refused

    def hang_up(self) -> None:
        """See `Pacs`."""
        if self._calling is not None:
            self._calling.shutdown()

    def _find_series(self, peer: Association, study: str) -> Iterator[FoundSeries]:
        wanted = {"Modality": "", "SeriesDescription": "", "SeriesNumber": ""}
        keys = {"StudyInstanceUID": study, "SeriesInstanceUID": "", **wanted}
        for found in self._query(peer, "SERIES", keys):
            uid = _text(found, "SeriesInstanceUID")
            if not is_uid(uid):
                continue
            keys = {
                "StudyInstanceUID": study,
                "SeriesInstanceUID": uid,
                "SOPInstanceUID": "",
                "SOPClassUID": "",
            }
            instances = {
                _text(instance, "SOPInstanceUID"): _text(instance, "SOPClassUID")
                for instance in self._query(peer, "IMAGE", keys)
            }
            modality, description, number = (_text(found, keyword) for keyword in wanted)
            yield FoundSeries(study, uid, modality, description, number, instances)

    def _query(self, peer: Association, level: str, keys: dict[str, str]) -> list[Dataset]:
        found = []
        with warnings.catch_warnings(action="ignore"):  # pydicom quotes the values it warns about
            identifier = Dataset()
            identifier.QueryRetrieveLevel = level
            for keyword, value in keys.items():
                setattr(identifier, keyword, value)
            for status, answer in peer.send_c_find(identifier, FindModel):
                code = self._check(status, "C-FIND")
                if code in _PENDING and answer is not None:
                    found.append(answer)
                elif code not in (0, *_PENDING):
                    raise self._failed(f"the PACS answers C-FIND with {code:04X}; look into its log")
        return found

    def _get(self, series: FoundSeries, keep: Callable[[Instance], None]) -> None:
        classes = sorted(filter(None, set(series.instances.values()))) or list(COMMON_CLASSES)
        contexts = [build_context(*pair) for pair in product(classes, SYNTAXES)][: _MAX_CONTEXTS - 1]
        roles = [build_role(UID(name), scp_role=True) for name in classes]

        def store(event: evt.Event) -> int:
            return store_status(keep, event.encoded_dataset(), lambda text: None)

        with self._associated(
            [build_context(GetModel), *contexts], roles, [(evt.EVT_C_STORE, store)]
        ) as peer:
            self._retrieve(peer.send_c_get(_identify(series), GetModel), "C-GET")

    def _move(self, series: FoundSeries) -> None:
        with self._associated([build_context(MoveModel)]) as peer:
            self._retrieve(peer.send_c_move(_identify(series), self._aet, MoveModel), "C-MOVE")

    def _retrieve(self, answers: Iterator[tuple[Dataset, Dataset | None]], command: str) -> None:
        """Follows a retrieval to its end; what did not come is seen by what came."""
        for status, _ in answers:
            code = self._check(status, command)
            if code == 0xA801:
                raise self._failed(f"the PACS does not know {self._aet} as a destination; enter it there")
            if code not in (0, 0xB000, *_PENDING) and not 0xA700 <= code < 0xA800:
                raise self._failed(f"the PACS answers {command} with {code:04X}; look into its log")

    def _store(self, peer: Association, path: Path) -> str | None:
        with warnings.catch_warnings(action="ignore"):
            try:
                status = peer.send_c_store(path)
            except ValueError:  # no such presentation context was accepted
                sop_class, syntax = _kind_of(path)
                return f"the PACS does not take {sop_class.name} in {syntax.name}"
            except RuntimeError as error:
                raise self._failed("the PACS broke off") from error
        code = self._check(status, "C-STORE")
        return None if code in _STORED else f"the PACS refused it (status {code:04X})"

    @contextmanager
    def _associated(
        self,
        contexts: list[PresentationContext],
        roles: Sequence[Any] = (),
        handlers: Sequence[Any] = (),
    ) -> Iterator[Association]:
        ae = self._calling = AE(ae_title=self._aet)
        ae.connection_timeout, ae.acse_timeout = _CONNECT_S, _CONNECT_S
        ae.dimse_timeout, ae.network_timeout = _ANSWER_S, _ANSWER_S
        peer = ae.associate(
            self._address.host,
            self._address.port,
            contexts,
            ae_title=self._address.aet,
            ext_neg=list(roles),
            evt_handlers=list(handlers),
        )
        if peer.is_rejected:
            message = f"the PACS refuses {self._aet} as a caller, or is not called {self._address.aet}"
            raise self._failed(f"{message}; enter both in its settings")
        if not peer.is_established:
            raise self._failed("the PACS cannot be reached, or takes nothing of this; is it running?")
        try:
            yield peer
        except BaseException:
            peer.abort()
            raise
        peer.release()

    def _check(self, status: Dataset, command: str) -> int:
        """The code of an answer, if there is one."""
        if "Status" not in status:
            raise self._failed(f"the PACS broke off or did not answer {command}")
        return int(status.Status)

    def _failed(self, message: str) -> ServiceError:
        return ServiceError(Fault(self._where, "pacs-error", message))


class _Sink:
    """See `Inbox`: all goes to one function."""

    def __init__(self, put: Callable[[Instance], None]) -> None:
        self._put = put

    def put(self, instance: Instance, sender: Thread) -> None:
        self._put(instance)

    def end(self, sender: Thread, *, is_released: bool) -> None:
        """Nothing: the answers to C-MOVE tell."""

    def tell(self, text: str) -> None:
        """Nothing: what is missing is seen."""


def _identify(series: FoundSeries) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "SERIES"
    identifier.StudyInstanceUID, identifier.SeriesInstanceUID = series.study, series.uid
    return identifier


def _kind_of(path: Path) -> tuple[UID, UID]:
    """SOP class and transfer syntax of a file."""
    with warnings.catch_warnings(action="ignore"):
        meta = dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"]).file_meta
    return UID(meta.MediaStorageSOPClassUID), UID(meta.TransferSyntaxUID)


def _text(found: Dataset, keyword: str) -> str:
    value = found.get(keyword)
    return "" if value is None else str(value).strip()
