"""What is sent to us by C-STORE: accepted from known senders only, and acknowledged when it is safe."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Thread
from typing import Any, Final, Protocol

from pynetdicom import AE, AllStoragePresentationContexts, _config, evt
from pynetdicom.events import Event
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # pynetdicom makes its names as it is imported

from pipeline.errors import ConfigError, Fault, InputError, ResourceError
from pipeline.pacs.instances import Instance, read_instance

_config.LOG_HANDLER_LEVEL = "none"
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)  # it logs identifiers

SYNTAXES: Final = (
    "1.2.840.10008.1.2.1",  # explicit, little endian
    "1.2.840.10008.1.2",  # implicit
    "1.2.840.10008.1.2.4.70",  # JPEG lossless
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.80",  # JPEG-LS
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.90",  # JPEG 2000
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.50",  # JPEG
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.201",  # high-throughput JPEG 2000
    "1.2.840.10008.1.2.4.202",
    "1.2.840.10008.1.2.4.203",
    "1.2.840.10008.1.2.5",  # RLE
    "1.2.840.10008.1.2.2",  # explicit, big endian
)
"""Transfer syntaxes that `pipeline.data.dicom` reads, what is most common first."""

COMMON_CLASSES: Final = (
    "1.2.840.10008.5.1.4.1.1.2",  # CT
    "1.2.840.10008.5.1.4.1.1.2.1",  # enhanced CT
    "1.2.840.10008.5.1.4.1.1.4",  # MR
    "1.2.840.10008.5.1.4.1.1.4.1",  # enhanced MR
    "1.2.840.10008.5.1.4.1.1.128",  # PET
    "1.2.840.10008.5.1.4.1.1.66.4",  # segmentation
    "1.2.840.10008.5.1.4.1.1.481.3",  # structure set
    "1.2.840.10008.5.1.4.1.1.7",  # secondary capture
)
"""What a series may be of whose kind the PACS does not tell."""

_SUCCESS, _OUT_OF_RESOURCES, _NOT_UNDERSTOOD = 0x0000, 0xA700, 0xC000
_MAX_ASSOCIATIONS = 64


class Inbox(Protocol):
    """Who takes what arrives. Called by many threads at once."""

    def put(self, instance: Instance, sender: Thread) -> None:
        """Keeps an instance; when this returns it is on disk, and is acknowledged.

        Raises:
            ResourceError: If it cannot be kept.
        """

    def end(self, sender: Thread, *, is_released: bool) -> None:
        """A sender is done, or broke off. One whose thread ended without a word broke off as well."""

    def tell(self, text: str) -> None:
        """Something for the log."""


@contextmanager
def receiving(aet: str, endpoint: tuple[str, int], allowed: Sequence[str], inbox: Inbox) -> Iterator[None]:
    """Accepts associations while it lasts.

    Args:
        aet: Our title; who calls another is refused.
        endpoint: Host and port to bind.
        allowed: Titles of those who may send.
        inbox: Takes what they send.

    Raises:
        ConfigError: If nobody can listen there.
    """
    ae = AE(ae_title=aet)
    ae.maximum_associations = _MAX_ASSOCIATIONS
    ae.require_called_aet = True
    ae.require_calling_aet = list(allowed)
    for context in AllStoragePresentationContexts:
        ae.add_supported_context(context.abstract_syntax, list(SYNTAXES))  # type: ignore[arg-type]  # it takes a list, and its types want another
    ae.add_supported_context(Verification)
    where = f"{endpoint[0]}:{endpoint[1]}"
    try:
        ae.start_server(endpoint, block=False, evt_handlers=_handlers(inbox))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        message = f"it cannot listen there ({reason}); choose another host or port"
        raise ConfigError(Fault(where, "cannot-listen", message)) from error
    try:
        yield
    finally:
        ae.shutdown()  # with the associations: the program cannot end before their threads


def store_status(put: Callable[[Instance], None], content: bytes, tell: Callable[[str], None]) -> int:
    """Keeps an instance that arrived by C-STORE, and what is answered then."""
    try:
        put(read_instance(content))
    except InputError as error:
        tell(f"an instance was refused: {error.faults[0].message}")
        return _NOT_UNDERSTOOD
    except ResourceError as error:
        tell(f"an instance could not be kept: {error.faults[0].message}")
        return _OUT_OF_RESOURCES
    return _SUCCESS


def _handlers(inbox: Inbox) -> list[Any]:
    def store(event: Event) -> int:
        return store_status(lambda found: inbox.put(found, event.assoc), event.encoded_dataset(), inbox.tell)

    def release(event: Event) -> None:
        inbox.end(event.assoc, is_released=True)

    def close(event: Event) -> None:
        inbox.end(event.assoc, is_released=False)

    def reject(event: Event) -> None:
        caller = event.assoc.requestor
        title = "".join(c if c.isprintable() else "?" for c in str(caller.ae_title))[:16]
        inbox.tell(
            f"refused {title!r} from {caller.address}: not allowed, not our title, or too many at once"
        )

    return [
        (evt.EVT_C_STORE, store),
        (evt.EVT_C_ECHO, lambda event: _SUCCESS),
        (evt.EVT_RELEASED, release),
        (evt.EVT_ABORTED, close),
        (evt.EVT_REJECTED, reject),
    ]
