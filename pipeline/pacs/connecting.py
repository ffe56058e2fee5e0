"""The client for an address."""

from __future__ import annotations

from importlib.util import find_spec

from pipeline.errors import ConfigError, Fault
from pipeline.pacs.address import DEFAULT_AET, Address, WebAddress
from pipeline.pacs.instances import Pacs


def connect(address: Address, aet: str = DEFAULT_AET, receive_at: tuple[str, int] | None = None) -> Pacs:
    """What speaks with a PACS; nothing is sent yet.

    Args:
        address: Where it is.
        aet: Our title, for one that speaks DIMSE.
        receive_at: Where images come in, for one that sends them (C-MOVE).

    Raises:
        ConfigError: If the libraries for it are not installed.
    """
    missing = [name for name in ("pynetdicom", "dicomweb_client") if find_spec(name) is None]
    if missing:
        message = f"{', '.join(missing)} is missing: pip install 'clinseg[pacs]'"
        raise ConfigError(Fault("pacs", "not-installed", message))
    from pipeline.pacs.dicomweb import WebPacs  # noqa: PLC0415 - of an extra
    from pipeline.pacs.dimse import DimsePacs  # noqa: PLC0415 - of an extra

    return WebPacs(address) if isinstance(address, WebAddress) else DimsePacs(address, aet, receive_at)
