"""What becomes of other people's test files: all of pydicom's, pydicom-data's and nibabel's, read as images.

    python benchmarks/conformance.py docs/conformance.md

Every file ends as a volume, as a slice that decodes, or with one line that says why not. Anything else, a
traceback, a crash, 20 seconds or 2 GiB, is told as such and ends the program with exit code 1. The files are
read by a process of their own; one that dies is followed by another, which goes on with the next file.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

import nibabel as nib
import numpy as np
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

from pipeline.data.dicom import is_dicom
from pipeline.data.dicom.headers import read_header
from pipeline.data.dicom.pixels import read_pixels
from pipeline.data.images import read_with_warnings
from pipeline.errors import FaultError

MEMORY = 2 * 2**30
SECONDS = 20
PACKAGES = {"pydicom": "pydicom/data", "pydicom-data": "data_store/data", "nibabel": "nibabel"}
LEFT_OUT = {".py", ".pyc", ".pyi"}


def outcome(path: Path) -> str:
    """What reading a file gives, in one line."""
    try:
        if path.is_file() and is_dicom(path) and len(frames := read_header(path).frames) == 1:
            (_, pixels), *_ = read_pixels(str(path), frames)
            return (
                f"slice of {' x '.join(map(str, pixels.shape))}, values {pixels.min():g} to {pixels.max():g}"
            )
        reading = read_with_warnings(path)
    except FaultError as error:
        return "; ".join(f"refused: {fault.message} [{fault.rule}]" for fault in error.faults)
    volume = reading.volumes[0]
    count = f"{len(reading.volumes)} volumes" if len(reading.volumes) > 1 else "volume"
    shape = " x ".join(map(str, volume.grid.shape))
    told = f"{count} of {shape}, {volume.grid.orientation}, {volume.array.dtype}"
    return told + "".join(f", warned [{warning.rule}]" for warning in reading.warnings)


def find_files() -> dict[str, list[Path]]:
    """The files of each package, and the folders that hold whole series."""
    found = {}
    for package, folder in PACKAGES.items():
        name, _, rest = folder.partition("/")
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            continue
        root = Path(spec.origin).parent / rest
        files = [path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix not in LEFT_OUT]
        if package == "nibabel":
            files = [path for path in files if "tests" in path.parts and "data" in path.parts]
        found[package] = files
    return found


def write_claims(folder: Path) -> list[Path]:
    """Files of a few bytes that claim to hold more than any computer has."""
    header = nib.Nifti2Header()
    header["dim"][:4] = 3, 100_000, 100_000, 100_000
    header["magic"] = b"n+2\0\r\n\032\n"
    header["vox_offset"], header["datatype"], header["bitpix"] = 544, 4, 16
    header.set_sform(np.eye(4), 1)
    (folder / "claims.nii").write_bytes(header.binaryblock + bytes(100))
    paths = [folder / "claims.nii"]
    for name, kind in (("slices", CTImageStorage), ("frames", EnhancedCTImageStorage)):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = kind
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
        dataset.SeriesInstanceUID, dataset.Modality = generate_uid(), "CT"
        dataset.Rows = dataset.Columns = 65535
        dataset.NumberOfFrames = 100_000 if name == "frames" else 1
        dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 0]
        dataset.PixelSpacing, dataset.SamplesPerPixel = [1, 1], 1
        dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelData = 15, bytes(100)
        paths.append(folder / f"claims-{name}.dcm")
        dataset.save_as(paths[-1], enforce_file_format=True)
    return paths


def read_all(start: int) -> None:
    """Reads the files named on standard input from the `start`-th on; a JSON line for each."""

    def stop(*_: object) -> None:
        raise TimeoutError

    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, stop)
    output = os.dup(1)
    os.dup2(2, 1)  # what C libraries print is no result
    for index, path in list(enumerate(json.load(sys.stdin)))[start:]:
        signal.alarm(SECONDS)
        faulthandler.dump_traceback_later(2 * SECONDS, exit=True)  # for what does not listen to signals
        try:
            told, is_failure = outcome(Path(path)), False
        except BaseException as error:
            told, is_failure = f"FAILED: {type(error).__name__}", True
        signal.alarm(0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        os.write(output, (json.dumps([index, told, is_failure, peak]) + "\n").encode())


def read_in_children(paths: list[Path]) -> Iterator[tuple[str, bool, int]]:
    """Outcome, whether it is a failure, and the process's peak of memory, per file."""
    done = 0
    while done < len(paths):
        command = [sys.executable, __file__, "--from", str(done)]
        child = subprocess.run(
            command, input=json.dumps([str(path) for path in paths]), stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, check=False,
        )  # fmt: skip
        for line in child.stdout.splitlines():
            _, told, is_failure, peak = json.loads(line)
            yield told, is_failure, peak
            done += 1
        if done < len(paths):
            yield f"FAILED: the process ended with {child.returncode}", True, 0
            done += 1


def name_of(path: Path, package: str) -> str:
    """Its path within the package."""
    folder = PACKAGES.get(package, "")
    return str(path).rpartition(f"/{folder}/")[2] if folder else path.name


def rows(package: str, paths: list[Path], outcomes: list[str]) -> Iterator[str]:
    """A line per file; neighbours in one folder with the same outcome share one."""
    named = zip(paths, outcomes, strict=True)
    for (_, told), group in groupby(named, key=lambda item: (item[0].parent, generic(item[1], item[0]))):
        files = [path for path, _ in group]
        name = name_of(files[0], package)
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        yield f"| `{name}`{more} | {told.replace('|', '/')} |"


def generic(told: str, path: Path) -> str:
    """An outcome without the name of its file."""
    return told.replace(f" ({path.name})", "")


def main() -> int:
    """Reads everything in child processes and writes the page."""
    if sys.argv[1:2] == ["--from"]:
        read_all(int(sys.argv[2]))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        files = find_files() | {"claims": write_claims(Path(folder))}
        flat = [path for paths in files.values() for path in paths]
        results = list(read_in_children(flat))
    peak, failures = max(peak for *_, peak in results), sum(failed for _, failed, _ in results)
    counts = {
        "slices": sum(told.startswith("slice") for told, *_ in results),
        "refused": sum(told.startswith("refused") for told, *_ in results),
    }
    counts["volumes"] = len(results) - failures - sum(counts.values())
    packages = ", ".join(f"{name} {version(name)}" for name in files if name in PACKAGES)
    lines = [
        "# Other people's test files",
        "",
        f"All {len(flat)} files that {packages} bring for their own tests,",
        "and a few that claim more than they hold, read as images are. A DICOM slice by itself is no volume:",
        "that it decodes is told instead. Written by `python benchmarks/conformance.py docs/conformance.md`.",
        "",
        f"{counts['volumes']} give volumes, {counts['slices']} are slices that decode, {counts['refused']}",
        f"are refused with a reason; {failures} failed otherwise. The process that read them all took",
        f"{peak / 2**20:.0f} MiB at most, libraries included; limits of {MEMORY // 2**30} GiB and of",
        f"{SECONDS} s per file stood.",
    ]
    place = 0
    for package, paths in files.items():
        told = [told for told, *_ in results[place : place + len(paths)]]
        place += len(paths)
        lines += [
            "",
            f"## {package}",
            "| file | what became of it |",
            "|---|---|",
            *rows(package, paths, told),
        ]
    Path(sys.argv[1]).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
