"""What a study is like, in a few lines for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

from pipeline.data.fingerprint import Fingerprint, StructureSize
from pipeline.planning.grid import ANISOTROPY


def describe_study(fingerprint: Fingerprint) -> list[str]:
    """Cases, grids, then a line per structure with its size and in how many cases it occurs."""
    cases = fingerprint.cases
    spacing = fingerprint.spacing
    grid = "anisotropic" if max(spacing) > ANISOTROPY * min(spacing) else "about isotropic"
    stored = Counter(case.orientation for case in cases).most_common(3)
    kind = "CT" if fingerprint.is_ct else ", ".join(fingerprint.channels)
    return [
        f"{len(cases)} cases of {fingerprint.num_patients} patients, {kind}, stored as "
        f"{', '.join(f'{codes} ({num})' for codes, num in stored)}",
        f"spacing {_axes(spacing)} mm ({grid}), content {_axes(fingerprint.extent_mm)} mm "
        "(medians; left-right x back-front x down-up)",
        *(_structure(name, sizes, len(cases)) for name, sizes in fingerprint.sizes.items()),
    ]


def _structure(name: str, sizes: Sequence[StructureSize], num_cases: int) -> str:
    if not sizes:
        return f"{name}: in none of {num_cases} cases"
    volumes = [size.ml for size in sizes]
    thickness = min(median(size.thickness_mm[axis] for size in sizes) for axis in range(3))
    told = (
        f"{name}: {median(volumes):.3g} ml ({min(volumes):.2g} to {max(volumes):.3g}), about "
        f"{thickness:.2g} mm thick, in {len(sizes)} of {num_cases} cases"
    )
    if len(sizes) == num_cases:
        return told
    return f"{told}: if nobody drew it elsewhere, name it in data.absent_means_unlabelled"


def _axes(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.3g}" for value in values)
