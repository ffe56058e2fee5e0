"""Where a PACS is: `dicom://AET@host:port` or the root of a DICOMweb service, `https://host/dicom-web`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from pipeline.errors import ConfigError, Fault

AET: Final = re.compile(r"[\x21-\x5b\x5d-\x7e](?:[\x20-\x5b\x5d-\x7e]{0,14}[\x21-\x5b\x5d-\x7e])?")
"""An application entity's title: up to 16 printable characters without a backslash."""
DEFAULT_AET: Final = "CLINSEG"
_FORMS = "it is dicom://AETITLE@host:port, or http(s)://host:port/path of a DICOMweb service"


@dataclass(frozen=True, slots=True)
class DimseAddress:
    """A PACS that speaks DIMSE.

    Attributes:
        aet: Its application entity's title.
        host: Name or IP address.
        port: TCP port.
    """

    aet: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"dicom://{self.aet}@{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class WebAddress:
    """A DICOMweb service.

    Attributes:
        url: Its root, below which `studies` lies.
        is_private: Whether nobody on the way can read along: TLS, or this machine.
    """

    url: str
    is_private: bool

    def __str__(self) -> str:
        return self.url


Address = DimseAddress | WebAddress


def parse_address(text: str, where: str) -> Address:
    """Understands an address.

    Args:
        text: As given on the command line.
        where: The argument, for faults.

    Raises:
        ConfigError: If it is none, or holds a password.
    """
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ConfigError(Fault(where, "address", f"{_FORMS}; not {text!r}")) from None
    if parts.password is not None or (parts.scheme in ("http", "https") and parts.username is not None):
        message = (
            "a password does not belong on a command line, where all users of the machine can read it; put "
            "it into ~/.netrc, or a token into CLINSEG_PACS_TOKEN"
        )
        raise ConfigError(Fault(where, "secret-in-address", message))
    if parts.scheme in ("http", "https") and host and not parts.query and not parts.fragment:
        is_private = parts.scheme == "https" or is_loopback(host)
        return WebAddress(text.rstrip("/"), is_private)
    if parts.scheme == "dicom" and host and port and parts.username and parts.path in ("", "/"):
        return DimseAddress(check_aet(parts.username, where), host, port)
    raise ConfigError(Fault(where, "address", f"{_FORMS}; not {text!r}"))


def parse_endpoint(text: str, where: str) -> tuple[str, int]:
    """Understands `host:port` of this machine.

    Raises:
        ConfigError: If it is none.
    """
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port or parts.path or parts.username:
        message = f"it is host:port of this machine, such as 127.0.0.1:11112; not {text!r}"
        raise ConfigError(Fault(where, "endpoint", message))
    return host, port


def check_aet(title: str, where: str) -> str:
    """The title, if it is one.

    Raises:
        ConfigError: If it is none.
    """
    if AET.fullmatch(title) is None:
        message = f"an application entity's title has 1 to 16 ASCII characters, no backslash; not {title!r}"
        raise ConfigError(Fault(where, "ae-title", message))
    return title


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by a name or number that can be nothing else."""
    return host in ("localhost", "::1") or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None
