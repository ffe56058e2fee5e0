"""Cases on the network's grid, cached by content.

A prepared case is mapped into memory: a patch reads only its own pages, or the compressed chunks of a large
volume that it touches, and what fits stays in the system's page cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.config import DataSection
from pipeline.data.cache import cached
from pipeline.data.cases import Case
from pipeline.data.checks import labelled_fault, read_checked_case
from pipeline.data.chunks import Voxels, find, keep
from pipeline.data.images import source_hash
from pipeline.errors import Fault, InputError
from pipeline.labels import LabelContract
from pipeline.volume import Volume
from transforms.keys import IMAGE, LABEL
from transforms.preprocessing import Preprocessing, preprocess

# Changes whenever the same files and settings would give other voxels than before.
_CACHE_VERSION = 3
_COORDINATES_PER_LABEL = 10_000

_Prepared = TypeVar("_Prepared")


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case on the network's grid, mapped from its cache file.

    Attributes:
        case: Ids and paths.
        image: `(C, H, W, D)` float32.
        label: `(1, H, W, D)` uint8 or int32 label indices, as `LabelContract.values` says.
        coordinates: Per label index but the background's, `(n, 3)` int32 voxels; absent if it has none.
        affine: 4x4, voxel of `image` → world, RAS millimetres.
        content_hash: SHA-256 over the files the case was read from.
        labelled: The structures that were drawn in the label map; None if all were.
        twin: The image as an enhancer shows it, like `image`; None if there is none.
    """

    case: Case
    image: Voxels
    label: Voxels
    coordinates: Mapping[int, Tensor]
    affine: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
    content_hash: str
    labelled: tuple[str, ...] | None = None
    twin: Voxels | None = None


def prepare_cases(
    cases: Sequence[Case],
    contract: LabelContract,
    num_channels: int,
    settings: Preprocessing,
    section: DataSection,
    on_case: Callable[[], None] = lambda: None,
) -> list[PreparedCase]:
    """Checks, preprocesses and caches `cases`; those whose files and chain are known are only mapped.

    Raises:
        InputError: With all faults of all cases.
        ResourceError: If the cache folder cannot be written or the disk is full.
    """

    def prepare(case: Case) -> PreparedCase:
        return _prepare_case(case, contract, num_channels, settings, section.cache_dir)

    return prepare_all(cases, prepare, on_case)


def add_twins(
    cases: Sequence[PreparedCase],
    render: Callable[[Case], Sequence[Volume]],
    key: object,
    settings: Preprocessing,
    section: DataSection,
    on_case: Callable[[], None] = lambda: None,
) -> list[PreparedCase]:
    """Prepares and caches another image of every case, on the same grid, beside its own.

    Args:
        cases: Prepared.
        render: Makes the image of a case, one volume per channel on the grid of its own; called one by one.
        key: JSON-able; with the case's id and files says all that `render` depends on.
        settings: As for the cases' own images.
        section: Says where the cache is.
        on_case: Called after each.

    Raises:
        InputError: With all faults of all cases.
        ResourceError: If the cache folder cannot be written or the disk is full.
    """
    twins: list[PreparedCase] = []
    faults: list[Fault] = []
    for prepared in cases:

        def build(case: Case = prepared.case) -> dict[str, Tensor]:
            volumes = render(case)
            arrays = [volume.array for volume in volumes]
            return keep(IMAGE, preprocess(settings, arrays, volumes[0].grid.affine).image)

        content = [_CACHE_VERSION, "twin", prepared.case.id, prepared.content_hash, asdict(settings), key]
        try:
            twin = find(IMAGE, cached(section.cache_dir, content, build))
            twins.append(replace(prepared, twin=twin))
        except InputError as error:
            faults += error.faults
        on_case()
    if faults:
        raise InputError(faults)
    return twins


def prepare_all(
    cases: Sequence[Case], prepare: Callable[[Case], _Prepared], on_case: Callable[[], None]
) -> list[_Prepared]:
    """What `prepare` makes of every case, two at a time, in their order.

    Args:
        cases: To be prepared.
        prepare: Raises an InputError if a case is wrong.
        on_case: Called after each.

    Raises:
        InputError: With all faults of all cases.
    """

    def judge(case: Case) -> _Prepared | tuple[Fault, ...]:
        try:
            return prepare(case)
        except InputError as error:
            return error.faults
        finally:
            on_case()

    with ThreadPoolExecutor(max_workers=2) as pool:
        pending = [pool.submit(judge, case) for case in cases]
        try:
            results = [future.result() for future in pending]
        except BaseException:
            # Who stops does not wait for the cases that have not begun.
            pool.shutdown(cancel_futures=True)
            raise
    faults = [fault for result in results if isinstance(result, tuple) for fault in result]
    if faults:
        raise InputError(faults)
    return [result for result in results if not isinstance(result, tuple)]


def hash_data(cases: Sequence[PreparedCase]) -> str:
    """One hash of the content of all cases and of what is labelled in them, whatever their order or paths."""
    return hash_contents(
        " ".join((case.case.id, case.content_hash, *(case.labelled or ()))) for case in cases
    )


def hash_contents(lines: Iterable[str]) -> str:
    """One hash of a line per case, whatever their order."""
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _prepare_case(
    case: Case, contract: LabelContract, num_channels: int, settings: Preprocessing, cache_dir: Path
) -> PreparedCase:
    assert case.label is not None, "training cases have labels"
    content_hash = hash_files(case, case.label)
    meaning = [contract.values, contract.ignore_value]
    key = [_CACHE_VERSION, content_hash, asdict(settings), meaning]
    build = partial(_prepare_tensors, case, contract, num_channels, settings)
    tensors = cached(cache_dir, key, build)
    # Other channels may have been declared before: files that hold them are refused, pictures serve for both.
    if find(IMAGE, tensors).shape[0] != num_channels:
        tensors = cached(cache_dir, [*key, num_channels], build)
    prefix = "coordinates/"
    coordinates = {int(n.removeprefix(prefix)): t for n, t in tensors.items() if n.startswith(prefix)}
    present = frozenset(tensors["values"].tolist())
    # Asked again, since the manifest may have changed while the files did not.
    if fault := labelled_fault(case, contract, present):
        raise InputError(fault)
    labelled = tuple(contract.labelled_structures(case.labelled, present))
    known = labelled if len(labelled) < len(contract.structures) else None
    image, label, affine = find(IMAGE, tensors), find(LABEL, tensors), tensors["affine"].numpy()
    return PreparedCase(case, image, label, coordinates, affine, content_hash, known)


def hash_files(case: Case, *others: Path) -> str:
    """SHA-256 over the content of the images of a case, be they files or DICOM series, and of other files.

    Raises:
        InputError: If one cannot be read.
    """
    try:
        hashes = [source_hash(path, rule) for path, rule in case.sources] + [source_hash(p) for p in others]
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    except OSError as error:
        reason = (error.strerror or "cannot be read").lower()
        raise InputError(Fault(case.id, "unreadable-file", f"a file of the case: {reason}")) from error


def _prepare_tensors(
    case: Case, contract: LabelContract, num_channels: int, settings: Preprocessing
) -> dict[str, Tensor]:
    checked = read_checked_case(case, contract, num_channels)
    assert checked.label is not None, "training cases have labels"
    arrays = [volume.array for volume in checked.images]
    prepared = preprocess(settings, arrays, checked.images[0].grid.affine, checked.label.array)
    assert prepared.label is not None
    values = torch.tensor(contract.values, dtype=torch.int32)
    index = torch.searchsorted(values, prepared.label)
    if contract.ignore_value is not None:
        index[prepared.label == contract.ignore_value] = len(values)
    tensors = {
        **keep(IMAGE, prepared.image),
        **keep(LABEL, index.to(torch.uint8 if len(values) < 256 else torch.int32)[None]),
        "affine": torch.from_numpy(prepared.affine),
        # As stored: what is small may be lost on the network's grid, and is labelled all the same.
        "values": torch.tensor(sorted(checked.values), dtype=torch.int32),
    }
    for label in range(len(values)):
        if values[label] != 0 and (voxels := _sample_voxels(index == label)) is not None:
            tensors[f"coordinates/{label}"] = voxels
    return tensors


def _sample_voxels(mask: Tensor) -> Tensor | None:
    voxels = mask.nonzero().to(torch.int32)
    if len(voxels) > _COORDINATES_PER_LABEL:
        # Evenly spread over the structure and the same every time.
        keep = torch.linspace(0, len(voxels) - 1, _COORDINATES_PER_LABEL).long()
        voxels = voxels[keep]
    return voxels.contiguous() if len(voxels) else None
