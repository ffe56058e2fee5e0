"""What the queue tells of a study."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Waiting:
    """A study that is complete and has no answer of this model yet.

    Attributes:
        study: Its id, the name of its folder.
        revision: What lies there now.
        starts: How often predicting it began and did not end.
        inputs: Hash of the series that the answer before was made of, where there was one that was sent.
    """

    study: str
    revision: int
    starts: int
    inputs: str | None


@dataclass(frozen=True, slots=True)
class Unsent:
    """An answer that the PACS has not acknowledged.

    Attributes:
        study: Its study's id.
        revision: Of the study that it is made of.
        attempts: How often it was sent in vain.
        refusals: How often of these the PACS refused it, rather than that it was away or broke off.
    """

    study: str
    revision: int
    attempts: int
    refusals: int


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a study stands with a model.

    Attributes:
        study: Its id.
        uid: Study Instance UID, by which a PACS finds it.
        model: SHA-256 of the model, or empty while there is no answer.
        state: `receiving`, `predicting`, `predicted`, `sent` or `parked`.
        num_instances: That lie here.
        reason: Why it is parked, or was not sent yet.
    """

    study: str
    uid: str
    model: str
    state: str
    num_instances: int
    reason: str
