"""A PACS by DICOMweb: QIDO-RS to find, WADO-RS to fetch, STOW-RS to send."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import requests
from dicomweb_client.web import DICOMwebClient
from pydicom import dcmread, dcmwrite

from pipeline.errors import Fault, FaultError, ServiceError
from pipeline.pacs.address import WebAddress
from pipeline.pacs.instances import FoundSeries, Instance, Query, is_uid, read_instance

TOKEN: Final = "CLINSEG_PACS_TOKEN"  # noqa: S105 - the variable's name
_TIMEOUT_S: Final = (10.0, 300.0)  # to connect; between two bytes, while a PACS fetches from its archive
_PAGE: Final = 500
_AS_STORED: Final = (("application/dicom", "*"),)
_KEYS: Final = {"StudyInstanceUID": "0020000D", "PatientID": "00100020", "AccessionNumber": "00080050"}
_SERIES, _INSTANCE, _CLASS = "0020000E", "00080018", "00080016"
_MODALITY, _DESCRIPTION, _NUMBER = "00080060", "0008103E", "00200011"
_REFUSED: Final = range(400, 500)
_OVERLOADED: Final = (408, 425, 429)

logging.getLogger("dicomweb_client").setLevel(logging.CRITICAL)  # it logs UIDs, and what a server says


class WebPacs:
    """See `Pacs`.

    Credentials come from `~/.netrc`, or a bearer token from the environment; neither is ever sent over plain
    HTTP to another machine.

    Args:
        address: Of the service.
    """

    def __init__(self, address: WebAddress) -> None:
        self._where = str(address)
        session = requests.Session()
        session.trust_env = address.is_private  # netrc
        token = os.environ.get(TOKEN)
        if token and address.is_private:
            session.headers["Authorization"] = f"Bearer {token}"
        self._client = DICOMwebClient(address.url, session, timeout=_TIMEOUT_S)
        self._client.set_http_retry_params(retry=False)  # who calls knows better when to try again

    def find(self, query: Query) -> list[FoundSeries]:
        """See `Pacs`."""
        with self._service():
            studies = self._pages(
                self._client.search_for_studies, _KEYS["StudyInstanceUID"], search_filters=query.keys
            )
            meant = [
                uid
                for uid, told in studies.items()
                if is_uid(uid) and all(_value(told, _KEYS[key]) == value for key, value in query.keys.items())
            ]
            return [series for uid in meant for series in self._find_series(uid)]

    def fetch(self, series: FoundSeries, keep: Callable[[Instance], None]) -> None:
        """See `Pacs`."""
        with self._service(), warnings.catch_warnings(action="ignore"):  # pydicom quotes values
            for dataset in self._client.iter_series(series.study, series.uid, _AS_STORED):
                file = BytesIO()
                dcmwrite(file, dataset, enforce_file_format=True)
                keep(read_instance(file.getvalue()))

    def send(self, files: Sequence[Path], on_file: Callable[[], None] = lambda: None) -> dict[Path, str]:
        """See `Pacs`. A request for each file, so that one which is refused harms no other."""
        refused = {}
        for path in files:
            if (reason := self._store(path)) is not None:
                refused[path] = reason
            on_file()
        return refused

    def hang_up(self) -> None:
        """Nothing: a request has no thread of its own, that a program would wait for."""

    def _store(self, path: Path) -> str | None:
        with self._service(), warnings.catch_warnings(action="ignore"):
            try:
                answer = self._client.store_instances([dcmread(path)])
            except requests.HTTPError as error:
                status = _status(error)
                if status in _REFUSED and status not in (*_OVERLOADED, 401, 403, 404):
                    return f"the PACS refused it (HTTP {status})"
                raise
            failed = answer.get("FailedSOPSequence")
        if failed:
            return f"the PACS refused it (reason {int(failed[0].get('FailureReason') or 0):04X})"
        return None

    def _find_series(self, study: str) -> Iterator[FoundSeries]:
        found = self._pages(
            self._client.search_for_series,
            _SERIES,
            study_instance_uid=study,
            fields=["Modality", "SeriesDescription", "SeriesNumber"],
        )
        for uid, told in found.items():
            if not is_uid(uid):
                continue
            instances = self._pages(
                self._client.search_for_instances,
                _INSTANCE,
                study_instance_uid=study,
                series_instance_uid=uid,
                fields=["SOPClassUID"],
            )
            yield FoundSeries(
                study,
                uid,
                _value(told, _MODALITY),
                _value(told, _DESCRIPTION),
                _value(told, _NUMBER),
                {instance: _value(about, _CLASS) for instance, about in instances.items()},
            )

    def _pages(
        self, search: Callable[..., list[dict[str, Any]]], key: str, **what: object
    ) -> dict[str, Mapping[str, Any]]:
        """Everything that fits, by its UID: servers tell no more at once than they like."""
        found: dict[str, Mapping[str, Any]] = {}
        while True:
            page = search(limit=_PAGE, offset=len(found), **what)
            new = {_value(entry, key): entry for entry in page if _value(entry, key) not in found}
            if not new:
                return found
            found |= new

    @contextmanager
    def _service(self) -> Iterator[None]:
        """What can go wrong between machines, for people; what a server says is not repeated."""
        try:
            yield
        except requests.HTTPError as error:
            status = _status(error)
            message = f"the PACS answers HTTP {status}; look into its log"
            if status in (401, 403):
                message = (
                    f"the PACS wants other credentials (HTTP {status}): put them into ~/.netrc, or a token "
                    f"into {TOKEN}; they are sent by https only"
                )
            elif status == 404:
                message = "there is no DICOMweb service (HTTP 404); the address ends where `/studies` begins"
            raise ServiceError(Fault(self._where, "pacs-error", message)) from error
        except requests.RequestException as error:
            message = f"the PACS cannot be reached or broke off ({type(error).__name__}); is it running?"
            raise ServiceError(Fault(self._where, "pacs-unreachable", message)) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, FaultError):
                raise
            message = f"what the PACS answers is no DICOMweb ({type(error).__name__}); check the address"
            raise ServiceError(Fault(self._where, "pacs-error", message)) from error


def _status(error: requests.HTTPError) -> int:
    return error.response.status_code if error.response is not None else 0


def _value(entry: Mapping[str, Any], tag: str) -> str:
    """A value of DICOM's JSON as text, empty if there is none."""
    values = (entry.get(tag) or {}).get("Value") or [""]
    return "" if isinstance(values[0], dict) or values[0] is None else str(values[0])
