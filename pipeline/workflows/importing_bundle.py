"""`clinseg import-bundle`: a MONAI bundle with a plain definition of its network becomes a model of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.bundles.definition import Definition, define
from pipeline.bundles.opening import OWN, Bundle, opened, read_bundle
from pipeline.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from pipeline.config import SegmentationJob, job_from_mapping, job_to_mapping, segmentation_job
from pipeline.environment import environment
from pipeline.errors import ConfigError, Fault, FaultError, InputError
from pipeline.files import sha256_of
from pipeline.labels import LabelContract
from pipeline.networks import build_network
from pipeline.networks.foreign import read_tensors

_PREFIXES = ("", "module.", "network.")
"""What stands before the names of weights, where it is not the network alone that was saved."""

_THEIRS = {"training.patch_size": "inferer.roi_size", "inference.window_size": "inferer.roi_size"}
"""What a bundle calls settings that contradict each other."""


@dataclass(frozen=True)
class Imported:
    """What became of a bundle.

    Attributes:
        labels: Names and values of what the model marks.
        differences: What the bundle's own program does otherwise.
        is_own: Whether the bundle came from here, with its checkpoint in it.
    """

    labels: Mapping[str, int]
    differences: tuple[str, ...]
    is_own: bool = False


def import_bundle(path: Path, output: Path) -> Imported:
    """Makes a checkpoint of a bundle; nothing in the bundle is run.

    Args:
        path: Its folder or zip.
        output: The `.safetensors` to write.

    Raises:
        ConfigError: If there is no such bundle, or `output` has another suffix.
        InputError: With all that is missing in the bundle, is no plain value, or has no words here.
        IntegrityError: If a checkpoint in it is damaged.
    """
    if output.suffix != ".safetensors":
        raise ConfigError(Fault(str(output), "suffix", "a model's file ends in .safetensors"))
    with opened(path) as files:
        if OWN in files:
            own = read_checkpoint(files[OWN])
            write_checkpoint(output, own)
            return Imported(own.labels, (), is_own=True)
        bundle = read_bundle(path, files)
        definition = define(bundle)
        checkpoint = _assemble(bundle, definition)
    write_checkpoint(output, checkpoint)
    return Imported(definition.labels, definition.differences)


def _assemble(bundle: Bundle, definition: Definition) -> Checkpoint:
    job = _job(bundle, definition)
    contract = LabelContract(definition.labels, job.data.regions)
    weights = _fit(bundle, job, len(definition.channels), len(contract.channel_values))
    known = bundle.metadata.raw(("version",))
    return Checkpoint(
        weights=weights,
        job=job_to_mapping(job),
        labels=dict(definition.labels),
        structures=contract.structures,
        channels=definition.channels,
        intensity={"channels": definition.statistics} if definition.statistics else None,
        provenance={
            "run": bundle.name,
            "imported": {
                "bundle": bundle.name,
                "version": known if isinstance(known, str) else None,
                "weights_sha256": sha256_of(bundle.weights),
                "differences": list(definition.differences),
            },
            "training_cases": [],
            "validation_cases": [],
            "environment": environment(),
        },
    )


def _job(bundle: Bundle, definition: Definition) -> SegmentationJob:
    """A job that would train such a network; its budget is a stand-in, nothing is known of the real one."""
    settings = {
        "task": "segmentation",
        "data": {"manifest": bundle.name, "labels": definition.labels, "regions": definition.regions},
        "preprocessing": definition.preprocessing,
        "network": definition.network,
        "training": {
            "epochs": 1,
            "patch_size": definition.inference["window_size"],
            "mixed_precision": False,
        },
        "inference": definition.inference,
    }
    try:
        return segmentation_job(job_from_mapping(settings))
    except ConfigError as error:
        raise InputError(
            Fault(f"{bundle.config.name}: {_THEIRS.get(fault.where, fault.where)}", fault.rule, fault.message)
            for fault in error.faults
        ) from error


def _fit(bundle: Bundle, job: SegmentationJob, num_channels: int, num_outputs: int) -> dict[str, Tensor]:
    """The weights by our names, once the network that they are for is known to take and give what it should.

    The network is built where tensors have shapes but no memory: a definition of any size costs nothing.
    """
    where = bundle.config.name
    try:
        with torch.device("meta"):
            network = build_network(job.network, num_channels, num_outputs).eval()
    except FaultError as error:
        raise InputError(
            Fault(
                f"{where}: {fault.where.replace('network.arguments', 'network_def')}",
                fault.rule,
                fault.message,
            )
            for fault in error.faults
        ) from error
    window = job.inference.window_size
    assert window is not None, "the definition has it"
    try:
        with torch.no_grad():
            shape = network(torch.empty(1, num_channels, *window, device="meta")).shape
    except Exception as error:  # MONAI says what it does not like by whatever it stumbles over
        message = (
            f"the network cannot take windows of {list(window)} voxels ({type(error).__name__}); mend it"
        )
        raise InputError(Fault(f"{where}: inferer.roi_size", "bundle-network", message)) from error
    if shape != (1, num_outputs, *window):
        message = (
            f"of a window of {list(window)} the network makes {list(shape[1:])}, and labels need its grid"
        )
        raise InputError(Fault(f"{where}: network_def", "bundle-network", message))
    return _match(bundle, read_tensors(bundle.weights), network.state_dict())


def _match(bundle: Bundle, found: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every weight of the network, of the same name, shape and kind, and nothing else."""
    names = {name.removeprefix("network."): name for name in targets}
    prefix = max(_PREFIXES, key=lambda start: sum(f"{start}{name}" in found for name in names))
    given = {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}
    given = {name: tensor for name, tensor in given.items() if not _is_supervision(name) or name in names}
    missing, unknown = sorted(names.keys() - given.keys()), sorted(given.keys() - names.keys())
    unlike = [
        name
        for name, tensor in given.items()
        if name in names and (tensor.shape != targets[names[name]].shape or not _is_whole(tensor))
    ]
    faults = [
        Fault(f"{bundle.weights.name}: {_listed(wrong)}", "bundle-weights", message)
        for wrong, message in (
            (missing, "the network that is defined has these weights, and the file has not"),
            (unknown, "the file has these weights, and the network that is defined has not"),
            (unlike, "the weights have another shape than those of the network that is defined"),
        )
        if wrong
    ]
    if faults:
        raise InputError(faults)
    return {names[name]: tensor.to(targets[names[name]].dtype) for name, tensor in given.items()}


def _is_whole(tensor: Tensor) -> bool:
    """Whether its memory holds every number of it: a view could claim any size."""
    return tensor.is_contiguous() and tensor.nbytes <= tensor.untyped_storage().nbytes()


def _is_supervision(name: str) -> bool:
    """Whether a weight makes DynUNet's further outputs, which are for training alone."""
    return "super_head" in name or "deep_supervision_heads" in name


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(ascii(name)[1:61] for name in names[:3]) + more
