"""MedMNIST's form of a data set: an `.npz` with `train_images`, `train_labels`, `val_images` and so on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import compress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.npz import ArrayHeader, is_npz, list_arrays, read_array, read_header
from pipeline.errors import Fault, InputError

IMAGES, LABELS = "images", "labels"
_TEST = "test_"
_MAX_CLASSES = 1000


def split_part(path: Path) -> tuple[Path, str]:
    """Parts `FILE.npz#val` into the file and `val`; without a `#` the latter is empty."""
    file, _, part = str(path).rpartition("#")
    return (Path(file), part) if is_npz(Path(file)) else (path, "")


def choose_part(path: Path, part: str, kind: str) -> str:
    """What stands before `images` or `labels` in the names of the arrays to read, such as `test_`.

    Args:
        path: The file.
        part: Which part is asked for by name, such as `val`; empty takes the only one, or else `test`.
        kind: `images` or `labels`: which of the two has to be there.

    Raises:
        InputError: If there is no such part, or several and none of them is `test`.
    """
    known = [name.removesuffix(kind) for name in list_arrays(path) if name.endswith(kind)]
    told = ", ".join(f"{path.name}#{prefix.rstrip('_')}" for prefix in known[:10])
    if part:
        if (prefix := f"{part}_") in known:
            return prefix
        message = f"there is no array {part}_{kind}; there is {told or f'none that ends with {kind}'}"
        raise InputError(Fault(str(path), "missing-array", message))
    if len(known) == 1:
        return known[0]
    if _TEST in known:
        return _TEST
    if known:
        raise InputError(Fault(str(path), "several-arrays", f"say which part is meant: {told}"))
    message = f"no array is called {kind}, or test_{kind}; the file holds {', '.join(list_arrays(path)[:10])}"
    raise InputError(Fault(str(path), "missing-array", message))


def read_images_header(path: Path, prefix: str) -> ArrayHeader:
    """The header of an array of images `(N, H, W)`, `(N, H, W, D)` or `(N, H, W, 3)`.

    Raises:
        InputError: If it is damaged, holds no numbers, or has another number of axes.
    """
    name = prefix + IMAGES
    header = read_header(path, name)
    if len(header.shape) not in (3, 4):
        message = f"images have shape (N, H, W), (N, H, W, D) or (N, H, W, 3), not {header.shape}"
        raise InputError(Fault(f"{path}: {name}", "image-shape", message))
    return header


def read_labels(path: Path, prefix: str) -> NDArray[np.int64]:
    """Reads the labels of a part.

    Returns:
        `(N, K)`: a column that holds the number of the class, or one of 0 and 1 for each class.

    Raises:
        InputError: If the array is damaged, or holds anything but whole numbers in such a shape.
    """
    name = prefix + LABELS
    header = read_header(path, name)
    if len(header.shape) > 2 or header.dtype.kind not in "uib":
        message = f"labels are whole numbers of shape (N, 1) or (N, K), not {header.dtype} of {header.shape}"
        raise InputError(Fault(f"{path}: {name}", "label-shape", message))
    return read_array(path, name).reshape(header.shape[0], -1).astype(np.int64)


def number_classes(labels: Sequence[NDArray[np.int64]], is_multi_label: bool) -> tuple[str, ...]:
    """The classes' numbers as their names: columns of a multi-label part, else 0 to the largest label."""
    if is_multi_label:
        num_classes = max(part.shape[1] for part in labels)
    else:
        num_classes = 1 + max(int(part.max()) for part in labels)
    return tuple(str(number) for number in range(min(max(num_classes, 0), _MAX_CLASSES)))


def name_labels(
    labels: NDArray[np.int64], classes: Sequence[str], is_multi_label: bool
) -> list[tuple[str, ...]]:
    """The classes of each row; rows that `label_faults` refuses must not come here."""
    if is_multi_label:
        return [tuple(compress(classes, row)) for row in labels.tolist()]
    return [(classes[number],) for number in labels[:, 0].tolist()]


def label_faults(
    where: str, labels: NDArray[np.int64], classes: Sequence[str], is_multi_label: bool
) -> Iterator[Fault]:
    """Faults of labels that are not those of the classes, each told once with the rows it concerns."""
    num_columns = len(classes) if is_multi_label else 1
    if labels.shape[1] != num_columns:
        advice = "name as many classes" if is_multi_label else "set data.multi_label if they are of that kind"
        message = f"a row holds {labels.shape[1]} labels where {num_columns} are expected; {advice}"
        yield Fault(where, "label-shape", message)
        return
    highest = 1 if is_multi_label else len(classes) - 1
    rows = np.flatnonzero(((labels < 0) | (labels > highest)).any(axis=1))
    if len(rows):
        told = ", ".join(f"{row} ({', '.join(map(str, labels[row][:10]))})" for row in rows[:5])
        more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
        message = f"labels run from 0 to {highest}; those of rows {told}{more} do not"
        yield Fault(where, "label-range", message)
