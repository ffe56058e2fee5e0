"""Pseudonyms that one key always makes of one identity, and nobody without the key can undo or repeat."""

from __future__ import annotations

import hashlib
import hmac
import re
from datetime import datetime, timedelta

_LEAST_SHIFT, _MOST_SHIFT = 30, 3650  # days


class Pseudonyms:
    """Ids, UIDs and shifted dates, all of them functions of a secret key.

    Args:
        key: At least 16 secret bytes. Who has it can tell which pseudonym belongs to an id that they know.
    """

    def __init__(self, key: bytes) -> None:
        assert len(key) >= 16, "a shorter key can be guessed"
        self._key = key

    def patient(self, identity: str) -> str:
        """The pseudonym of a patient, such as `P-0f3a…`."""
        return f"P-{self._digest('patient', identity)[:6].hex()}"

    def uid(self, uid: str) -> str:
        """The UID that takes the place of another, the same everywhere (ISO/IEC 9834-8, `2.25.…`)."""
        return f"2.25.{int.from_bytes(self._digest('uid', uid)[:16])}"

    def file_name(self, uid: str) -> str:
        """A file name that tells nothing."""
        return self._digest("file", uid)[:8].hex()

    def date(self, patient: str, value: str) -> str:
        """A DICOM date, as many days earlier as all others of this patient; empty if it is none.

        Args:
            patient: The pseudonym.
            value: `YYYYMMDD`, with or without a time and zone behind it.
        """
        if not re.fullmatch(r"[0-9]{8}[0-9.+-]*", value.strip()):
            return ""
        try:
            day = datetime.strptime(value[:8], "%Y%m%d")
            return f"{day - self._shift(patient):%Y%m%d}{value[8:]}"
        except (ValueError, OverflowError):
            return ""

    def _shift(self, patient: str) -> timedelta:
        number = int.from_bytes(self._digest("days", patient)[:8])
        return timedelta(days=_LEAST_SHIFT + number % (_MOST_SHIFT - _LEAST_SHIFT))

    def _digest(self, what: str, text: str) -> bytes:
        return hmac.digest(self._key, f"{what}|{text}".encode(), hashlib.sha256)
