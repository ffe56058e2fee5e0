"""What the parts of a checkpoint are called in its file: nested values as JSON, every tensor by a name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from pipeline.checkpoint.content import Checkpoint, Member
from pipeline.checkpoint.packing import SEGMENTER, STATE, pack, unpack

NEWEST_VERSION = 3
_FIELDS = ("job", "labels", "structures", "channels", "intensity", "provenance")
_MEMBER_FIELDS = ("intensity", "provenance")
_MEMBER = "member/"


def version_of(content: Mapping[str, Any]) -> int:
    """The oldest format that has words for it, so that a clinseg of before refuses what it cannot know."""
    return 3 if "segmenter" in content else 2 if "members" in content else 1


def lay_out(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON-able content of a checkpoint, and its tensors by their names in the file.

    Raises:
        TypeError: If something is no tensor, dict, list, tuple, number, string, boolean or None.
    """
    state: dict[str, Tensor] = {}
    content = {name: pack(getattr(checkpoint, name), state, name) for name in _FIELDS}
    if checkpoint.calibration is not None:
        content["calibration"] = pack(checkpoint.calibration, state, "calibration")
    if checkpoint.members:
        facts = [{name: getattr(member, name) for name in _MEMBER_FIELDS} for member in checkpoint.members]
        content["members"] = pack(facts, state, "members")
    if state:
        raise TypeError("tensors belong into a checkpoint's weights or its state")
    if checkpoint.state is not None:
        content["state"] = pack(checkpoint.state, state, "state")
    tensors = checkpoint.weights | state
    for number, member in enumerate(checkpoint.members):
        tensors |= _prefixed(member.weights, f"{_MEMBER}{number}/")
    if checkpoint.segmenter is not None:
        inner, inner_tensors = lay_out(replace(checkpoint.segmenter, state=None))
        content["segmenter"] = inner | {"content_hash": checkpoint.segmenter.content_hash}
        tensors |= _prefixed(inner_tensors, SEGMENTER)
    return content, tensors


def gather(
    content: Mapping[str, Any],
    names: Iterable[str],
    tensor: Callable[[str], Tensor],
    content_hash: str | None,
    *,
    with_state: bool = False,
) -> Checkpoint:
    """The checkpoint that `lay_out` was given; of a state it is read only on demand.

    Args:
        content: As `lay_out` gives it.
        names: Of all tensors.
        tensor: Has them by name.
        content_hash: Of the file.
        with_state: Whether to gather the training state.
    """
    names = list(names)

    def weights(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor(name) for name in names if name.startswith(prefix)}

    facts = unpack(content.get("members", []), tensor)
    members = tuple(Member(weights(f"{_MEMBER}{number}/"), **own) for number, own in enumerate(facts))
    own = [name for name in names if not name.startswith((STATE, SEGMENTER))]
    inner = content.get("segmenter")
    if inner is not None:
        within = [name.removeprefix(SEGMENTER) for name in names if name.startswith(SEGMENTER)]
        inner = gather(inner, within, lambda name: tensor(f"{SEGMENTER}{name}"), inner["content_hash"])
    return Checkpoint(
        weights={} if members else {name: tensor(name) for name in own},
        calibration=unpack(content.get("calibration"), tensor),
        state=unpack(content["state"], tensor) if with_state and "state" in content else None,
        content_hash=content_hash,
        members=members,
        segmenter=inner,
        **{name: unpack(content[name], tensor) for name in _FIELDS},
    )


def _prefixed(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
