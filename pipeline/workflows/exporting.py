"""`clinseg export`: a model in a form that other programs run, and a card that says what was lost."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from pipeline import __version__
from pipeline.checkpoint import Checkpoint, write_checkpoint
from pipeline.config import job_from_mapping, segmentation_job
from pipeline.data.images import read_image, source_hash
from pipeline.environment import environment
from pipeline.errors import ConfigError, Fault
from pipeline.export.bundle import NETWORK, OWN, check_bundle, write_bundle_configs
from pipeline.export.graphs import (
    Graph,
    load_onnx,
    load_torch_export,
    write_onnx,
    write_torch_export,
    write_torchscript,
)
from pipeline.files import sha256_of, write_text
from pipeline.inference.predictor import load_contract
from pipeline.networks import build_network
from pipeline.networks.mean_network import MeanNetwork
from pipeline.volume import Volume
from pipeline.workflows.cards import describe
from pipeline.workflows.papers.export_differences import (
    ExportModel,
    compare_masks,
    compare_windows,
    made_up_volume,
)
from pipeline.workflows.papers.markdown import table
from pipeline.workflows.runs.models import load_model


@dataclass(frozen=True, slots=True)
class _Form:
    """A form that is one file.

    Attributes:
        suffix: Of the file.
        write: Writes it, of a network and an example.
        load: Reads it back.
        modules: What has to be installed.
    """

    suffix: str
    write: Callable[[Path, nn.Module, Tensor], None]
    load: Callable[[Path], Graph]
    modules: tuple[str, ...] = ()


GRAPHS: Final = {
    "onnx": _Form(".onnx", write_onnx, load_onnx, ("onnx", "onnxscript", "onnxruntime")),
    "torch-export": _Form(".pt2", write_torch_export, load_torch_export),
}
FORMATS: Final = ("bundle", *GRAPHS)
_BUNDLE_MODULES: Final = ("ignite", "fire", "skimage")


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and how it compares.

    Attributes:
        path: The file, or the folder of a bundle.
        card: Its card.
        num_differing: Voxels that get another label.
        num_voxels: That were compared.
        on: What they belong to, in words.
    """

    path: Path
    card: Path
    num_differing: int
    num_voxels: int
    on: str


def export(model: str, form: str, output: Path, image: Path | None = None) -> Exported:
    """Exports a segmentation model, and measures what is lost.

    Args:
        model: A run, `latest`, a checkpoint file or `models:/name@alias`.
        form: One of `FORMATS`.
        output: File, or for a bundle a folder that is not there yet.
        image: What to measure on; None takes a made-up volume.

    Raises:
        FaultError: If there is no such model, the form cannot hold it, or nothing can be written.
    """
    _check(form, output)
    loaded = _load(load_model(model), form)
    volumes = made_up_volume(loaded) if image is None else read_image(image)
    if len(volumes) != len(loaded.checkpoint.channels):
        message = f"the model needs {len(loaded.checkpoint.channels)} channels, it has {len(volumes)}"
        raise ConfigError(Fault(str(image), "num-channels", message))
    on = "a made-up volume" if image is None else f"{image.name} (SHA-256 {source_hash(image)[:16]}…)"
    example = torch.randn(2, len(loaded.checkpoint.channels), *loaded.window)
    if form == "bundle":
        return _export_bundle(loaded, output, example, volumes, on)
    GRAPHS[form].write(output, loaded.network, example)
    differing, total = compare_windows(loaded, GRAPHS[form].load(output), volumes)
    card = output.with_name(f"{output.name}.card.md")
    result = Exported(output, card, differing, total, on)
    write_text(card, describe(loaded.checkpoint, _section(loaded, form, result)))
    return result


def _check(form: str, output: Path) -> None:
    if form not in FORMATS:
        message = f"there is no format {form!r}; there are {', '.join(FORMATS)}"
        raise ConfigError(Fault("--format", "unknown-format", message))
    needed = _BUNDLE_MODULES if form == "bundle" else GRAPHS[form].modules
    if missing := [module for module in needed if find_spec(module) is None]:
        message = f"{', '.join(missing)} is missing: pip install 'clinseg[export]'"
        raise ConfigError(Fault("--format", "not-installed", message))
    if form == "bundle" and output.exists():
        raise ConfigError(Fault(str(output), "exists", "it is there already; name a folder that is not"))
    if form != "bundle" and output.suffix != GRAPHS[form].suffix:
        message = f"a file of this format ends in {GRAPHS[form].suffix}"
        raise ConfigError(Fault(str(output), "suffix", message))


def _load(checkpoint: Checkpoint, form: str) -> ExportModel:
    if checkpoint.job.get("task") != "segmentation":
        raise ConfigError(Fault("model", "other-task", "only segmentation models can be exported"))
    job, contract = segmentation_job(job_from_mapping(checkpoint.job)), load_contract(checkpoint)
    members = checkpoint.members or (checkpoint,)
    if any(member.intensity != members[0].intensity for member in members):
        message = "its networks normalise images each in its own way; export the model of one fold"
        raise ConfigError(Fault("model", "several-normalisations", message))
    if form == "bundle":
        check_bundle(job, len(checkpoint.channels))
    networks: list[nn.Module] = []
    for member in members:
        network = build_network(job.network, len(checkpoint.channels), len(contract.channel_values))
        network.load_state_dict(member.weights)
        networks.append(network)
    merged = networks[0] if len(networks) == 1 else MeanNetwork(networks)
    window = tuple(job.inference.window_size or job.training.patch_size)
    return ExportModel(checkpoint, job, contract, merged.eval(), window)


def _export_bundle(
    model: ExportModel, output: Path, example: Tensor, volumes: Sequence[Volume], on: str
) -> Exported:
    """Builds the bundle beside its name, runs it, and renames it once it is complete."""
    output = output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".bundle-") as temporary:
        folder = Path(temporary) / "bundle"
        write_torchscript(folder / NETWORK, model.network, example)
        found = environment()
        made = model.checkpoint.provenance.get("run") or "segmentation model"
        about = {
            "name": made,
            "version": __version__,
            "versions": found,
            "sha256": model.checkpoint.content_hash,
        }
        write_bundle_configs(
            folder, model.job, model.contract, model.checkpoint.channels, about, _statistics(model)
        )
        differing, total = compare_masks(model, folder, Path(temporary), volumes)
        result = Exported(output, output / "docs/README.md", differing, total, on)
        write_checkpoint(folder / OWN, replace(model.checkpoint, state=None))
        write_text(folder / "docs/README.md", describe(model.checkpoint, _section(model, "bundle", result)))
        shutil.move(folder, output)
    return result


def _statistics(model: ExportModel) -> dict[str, float] | None:
    member = (model.checkpoint.members or (model.checkpoint,))[0]
    channels = (member.intensity or {}).get("channels", [])
    return dict(channels[0]) if channels else None


def _section(model: ExportModel, form: str, result: Exported) -> list[str]:
    """What the card says of the export."""
    share = result.num_differing / result.num_voxels
    whole = form == "bundle"
    where = "the image's own grid" if whole else "the network's grid"
    left_out = []
    if model.job.inference.flips:
        left_out.append("averaging over mirrored windows (`inference.flips`)")
    if not whole:
        left_out.append("orientation, spacing and normalisation of the image (settings above)")
        left_out.append("sliding windows, and the way back to the image's grid")
        if model.job.inference.largest_component:
            left_out.append("keeping largest components (`inference.largest_component`)")
    window = " x ".join(map(str, model.window))
    told = {
        "Format": form,
        "Input": f"`image`, float32, (batch, {len(model.checkpoint.channels)}, {window})",
        "Output": f"`logits`, float32, (batch, {len(model.contract.channel_values)}, {window}), no softmax",
        "Output channels": ", ".join(model.contract.channel_names),
        "Voxels that get another label": f"{result.num_differing} of {result.num_voxels} ({share:.4%})",
        "Compared on": f"{result.on}, on {where}",
        "Not in it": "; ".join(left_out) or "nothing",
    }
    if form != "bundle":
        told["SHA-256 of the file"] = sha256_of(result.path)
    return ["", "## Export", "", *table(("", ""), list(told.items()))]
