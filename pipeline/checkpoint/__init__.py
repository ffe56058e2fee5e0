"""Checkpoints: one file that carries weights with all that is needed to use them or to train on.

`content` says what is in one, `layout` names its parts, `packing` turns nested values into JSON and back,
`files` writes and reads the file. Reading a file runs nothing. `docs/checkpoint-format.md` has the format.
"""

from pipeline.checkpoint.content import Checkpoint, Member
from pipeline.checkpoint.files import is_checkpoint, read_checkpoint, write_checkpoint

__all__ = ["Checkpoint", "Member", "is_checkpoint", "read_checkpoint", "write_checkpoint"]
