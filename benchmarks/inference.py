"""Sliding-window prediction against its peers, in one run: time, memory and labels.

    python benchmarks/inference.py -o docs/benchmarks/inference.md [--only buffers network case empty memory]

Peers: MONAI's `SlidingWindowInferer`; nnU-Net's predictor, if `nnunetv2` is installed (constrained, or it
replaces torch); and the bare network over the same windows, one after the other and in lanes. Times are taken
in rounds, every method once a round; ratios are those of a round, told as median (smallest to largest).
Memory is measured in a process of its own: its peak beyond that of the bare network with the image beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from nilearn.datasets import load_mni152_brain_mask
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.config import InferenceSection, NetworkSection, load_job, segmentation_job
from pipeline.data.cases import Case
from pipeline.inference.budget import Plan
from pipeline.inference.cohort import predict_cohort
from pipeline.inference.labelling import Labeller, LabelMap
from pipeline.inference.predictor import Predictor
from pipeline.inference.windows import lay_windows
from pipeline.labels import LabelContract
from pipeline.memory import format_size, freed_memory_kept, measure_peak, resident_bytes
from pipeline.networks import Segmenter, build_network
from pipeline.networks.blocks import Pointwise
from pipeline.precision import autocast, inference_dtype
from pipeline.volume import Grid
from transforms.preprocessing import Prepared

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
OVERLAP = 0.5
ROOT = Path(__file__).parents[1]
Shape = tuple[int, int, int]
Labels = NDArray[Any]


class Stub(nn.Module):
    """A network that takes no time: its features are ready-made, so that all the rest is what is measured."""

    def __init__(self, num_classes: int, num_features: int, window: Shape) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.features = torch.randn(1, num_features, *window, generator=generator)
        self.head = Pointwise(num_features, num_classes)
        nn.init.normal_(self.head.weight, generator=generator)
        nn.init.zeros_(self.head.bias)
        self.ready = self.head(self.features).detach() if num_classes <= num_features else None

    def forward_features(self, windows: Tensor) -> Tensor:
        """The same features for every window."""
        return self.features.repeat(len(windows), 1, 1, 1, 1)

    def forward(self, windows: Tensor) -> Tensor:
        """The same logits for every window."""
        if self.ready is not None:
            ready: Tensor = self.ready.repeat(len(windows), 1, 1, 1, 1)
            return ready
        logits: Tensor = self.head(self.forward_features(windows))
        return logits


@dataclass(frozen=True)
class Setting:
    """What all methods are given."""

    network: nn.Module
    image: Tensor
    num_classes: int
    window: Shape
    flips: bool = False
    skip_empty: bool = False

    @property
    def num_windows(self) -> int:
        """Windows that cover the image, mirrored copies counted."""
        height, width, depth = self.image.shape[1:]
        return lay_windows((height, width, depth), self.window, OVERLAP).num * (8 if self.flips else 1)


def build_labeller(setting: Setting) -> Labeller:
    contract = LabelContract({f"label {n}": n for n in range(setting.num_classes)})
    section = InferenceSection(overlap=OVERLAP, skip_empty=setting.skip_empty)
    # A stub is no AttentionUNet, but has all that is used of one.
    network: Any = setting.network
    return Labeller(
        [network],
        contract,
        section,
        setting.window,
        DEVICE,
        mixed_precision=True,
        flipped_axes=(0, 1, 2) if setting.flips else (),
    )


def predict(setting: Setting) -> LabelMap:
    height, width, depth = setting.image.shape[1:]
    grid = Grid((height, width, depth), np.eye(4))
    with freed_memory_kept():  # as `clinseg predict` does
        return build_labeller(setting).label(Prepared(setting.image, np.eye(4)), grid)


def ours(setting: Setting) -> Labels:
    return predict(setting).array


def monai(setting: Setting) -> Labels:
    """MONAI's inferer, then argmax."""
    inferer = SlidingWindowInferer(setting.window, 1, OVERLAP, "gaussian")
    predict = mirrored(setting.network) if setting.flips else setting.network
    with torch.inference_mode():
        logits = inferer(setting.image[None].to(DEVICE), predict)
        assert isinstance(logits, Tensor)
        return logits.argmax(1)[0].cpu().numpy()


def nnunet(setting: Setting) -> Labels:
    """nnU-Net's predictor with our network put into it, then argmax."""
    predictor = import_module("nnunetv2.inference.predict_from_raw_data").nnUNetPredictor(
        tile_step_size=1 - OVERLAP,
        use_gaussian=True,
        use_mirroring=setting.flips,
        perform_everything_on_device=DEVICE.type == "cuda",
        device=DEVICE,
        allow_tqdm=False,
    )
    predictor.network = setting.network
    predictor.configuration_manager = SimpleNamespace(patch_size=setting.window)
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=setting.num_classes)
    predictor.allowed_mirroring_axes = (0, 1, 2)
    with torch.inference_mode():
        labels: Labels = predictor.predict_sliding_window_return_logits(setting.image).argmax(0).cpu().numpy()
        return labels


def nnunet_network() -> nn.Module:
    """The network that nnU-Net's planner chooses for the hippocampus, untrained."""
    build: Callable[..., nn.Module] = import_module(
        "dynamic_network_architectures.architectures.unet"
    ).PlainConvUNet
    return (
        build(
            input_channels=1,
            n_stages=4,
            features_per_stage=(32, 64, 128, 256),
            conv_op=nn.Conv3d,
            kernel_sizes=[[3, 3, 3]] * 4,
            strides=[[1, 1, 1], *[[2, 2, 2]] * 3],
            n_conv_per_stage=[2] * 4,
            num_classes=3,
            n_conv_per_stage_decoder=[2] * 3,
            conv_bias=True,
            norm_op=nn.InstanceNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
        )
        .to(DEVICE)
        .eval()
    )


def bare(setting: Setting) -> None:
    """The network alone, over as many windows, mirrored copies counted."""
    with freed_memory_kept():
        run_network(setting, setting.num_windows)


def run_network(setting: Setting, num_windows: int) -> None:
    batch = setting.image[(slice(None), *(slice(0, n) for n in setting.window))][None].contiguous().to(DEVICE)
    with torch.inference_mode(), autocast(DEVICE, inference_dtype(DEVICE, mixed=True)):
        for _ in range(num_windows):
            setting.network(batch)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def bare_in_lanes(setting: Setting) -> None:
    """The same, every core working on windows of its own."""
    num_threads = torch.get_num_threads()
    if DEVICE.type == "cuda" or num_threads == 1:
        bare(setting)
        return
    shares = [len(range(lane, setting.num_windows, num_threads)) for lane in range(num_threads)]
    lanes = ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,))
    with freed_memory_kept(), lanes as pool:
        list(pool.map(run_network, [setting] * num_threads, shares))
    torch.set_num_threads(num_threads)


def mirrored(network: nn.Module) -> Callable[[Tensor], Tensor]:
    axes = [[2 + k for k in range(3) if bits >> k & 1] for bits in range(8)]

    def predict(windows: Tensor) -> Tensor:
        return torch.stack([network(windows.flip(some)).flip(some) for some in axes]).mean(0)

    return predict


def reference_network(num_classes: int) -> Segmenter:
    """The network of the shipped hippocampus job."""
    torch.manual_seed(0)
    return build_network(NetworkSection(features=(16, 32, 64, 96)), 1, num_classes).to(DEVICE).eval()


def clock(
    methods: Mapping[str, Callable[[], object]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, object]]:
    """Seconds of every method in every round, and what each gave last."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    results = {}
    for number in range(rounds):
        for name, method in methods.items():
            start = time.perf_counter()
            results[name] = method()
            times[name].append(time.perf_counter() - start)
            print(f"  round {number + 1}: {name} {times[name][-1]:.2f} s", file=sys.stderr, flush=True)
    return times, results


def spread(values: Sequence[float], unit: str = "") -> str:
    return f"{statistics.median(values):.3g}{unit} ({min(values):.3g} to {max(values):.3g})"


def ratio(times: dict[str, list[float]], name: str, to: str) -> str:
    return spread([a / b for a, b in zip(times[name], times[to], strict=True)])


def measure_buffers(rounds: int) -> list[str]:
    rows = []
    for num_classes in (3, 30):
        stub = Stub(num_classes, num_classes, (96, 96, 96)).to(DEVICE)
        setting = Setting(stub, torch.zeros(1, 512, 512, 300), num_classes, (96, 96, 96))
        methods: dict[str, Callable[[Setting], object]] = {"stub": bare, "ours": ours, "MONAI": monai}
        times, _ = clock({name: partial(method, setting) for name, method in methods.items()}, rounds)
        for name in "ours", "MONAI":
            times[f"{name} beyond"] = [t - stub for t, stub in zip(times[name], times["stub"], strict=True)]
        rows.append(
            f"| 512×512×300, {num_classes} classes | {spread(times['stub'], ' s')} | "
            f"{spread(times['ours'], ' s')} | {spread(times['MONAI'], ' s')} | "
            f"{ratio(times, 'ours', 'MONAI')} | {ratio(times, 'ours beyond', 'MONAI beyond')} |"
        )
    header = [
        "| windows of 96³ | copying ready-made scores, instead of a network | ours | "
        "MONAI plain and argmax | ratio | ratio beyond the copying |",
        "|---|---|---|---|---|---|",
    ]
    return [*header, *rows]


def measure_network(rounds: int) -> list[str]:
    methods: dict[str, Callable[[Setting], object]] = {
        "bare": bare,
        "bare in lanes": bare_in_lanes,
        "ours": ours,
        "MONAI": monai,
    }
    if find_spec("nnunetv2"):
        methods["nnU-Net"] = nnunet
    rows = []
    for shape, side, flips in (((128,) * 3, 64, False), ((197, 233, 189), 96, False), ((96,) * 3, 64, True)):
        image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
        setting = Setting(reference_network(4), image, 4, (side, side, side), flips)
        times, labels = clock({name: partial(method, setting) for name, method in methods.items()}, rounds)
        size = "×".join(map(str, shape))
        mirroring = ", 8 flips" if flips else ""
        num_windows = setting.num_windows // (8 if flips else 1)
        cells = [
            f"{size}, {num_windows} windows of {side}³{mirroring}",
            spread(times["ours"], " s"),
            ratio(times, "ours", "bare"),
            ratio(times, "ours", "bare in lanes"),
        ]
        for peer in ("MONAI", "nnU-Net"):
            if peer in times:
                num_unlike = np.count_nonzero(np.asarray(labels["ours"]) != np.asarray(labels[peer]))
                cells += [ratio(times, "ours", peer), f"{num_unlike} of {image.numel()}"]
            else:
                cells += ["not measured"] * 2
        rows.append(f"| {' | '.join(cells)} |")
    header = [
        "| with the reference network, 4 classes | ours | ratio to the bare network, window by window | "
        "to the bare network, a window a core | to MONAI | labels unlike MONAI's | to nnU-Net | "
        "labels unlike nnU-Net's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return [*header, *rows]


def measure_empty(rounds: int) -> list[str]:
    """A head whose surroundings were set to zero, with and without skipping what is empty."""
    brain = torch.from_numpy(load_mni152_brain_mask(resolution=1).get_fdata(dtype=np.float32))
    image = torch.randn(brain.shape, generator=torch.Generator().manual_seed(0)) * brain
    network, rows = reference_network(4), []
    for side in (64, 96):
        plain = Setting(network, image[None], 4, (side, side, side))
        skipping = replace(plain, skip_empty=True)
        times, labels = clock({"plain": partial(ours, plain), "skipping": partial(ours, skipping)}, rounds)
        num_unlike = np.count_nonzero(np.asarray(labels["plain"]) != np.asarray(labels["skipping"]))
        num_skipped = predict(skipping).num_skipped
        rows.append(
            f"| 197×233×189 round the MNI152 brain, {plain.num_windows} windows of {side}³ | "
            f"{num_skipped} | {ratio(times, 'skipping', 'plain')} | {num_unlike} |"
        )
    header = [
        "| `skip_empty` | windows skipped | time against not skipping | other labels |",
        "|---|---|---|---|",
    ]
    return [*header, *rows]


def measure_case(rounds: int) -> list[str]:
    """Whole cases by the shipped hippocampus job against nnU-Net's sliding window alone."""
    if not find_spec("nnunetv2"):
        return ["Whole cases: not measured, nnU-Net is not installed."]
    num_cases, shape = 20, (35, 51, 35)
    generator = np.random.default_rng(0)
    job = segmentation_job(load_job(ROOT / "configs/hippocampus.yaml"))
    contract = LabelContract({"background": 0, "anterior": 1, "posterior": 2})
    network = build_network(job.network, 1, 3)
    predictor = Predictor(job, contract, ["MR"], [network], [()], DEVICE)
    theirs = nnunet_network()
    with TemporaryDirectory() as name:
        folder = Path(name)
        cases, settings = [], []
        for number in range(num_cases):
            array = generator.integers(0, 1000, shape, dtype=np.int16)
            path = folder / f"case_{number}.nii.gz"
            nibabel.Nifti1Image(array, np.eye(4)).to_filename(path)
            cases.append(Case(path.name, path.name, (path,)))
            image = torch.from_numpy(array.astype(np.float32))[None]
            settings.append(
                Setting(theirs, (image - image.mean()) / image.std(), 3, (40, 56, 40), flips=True)
            )

        def run_theirs() -> None:
            for setting in settings:
                nnunet(setting)

        def run_ours() -> None:
            with freed_memory_kept():
                predict_cohort(predictor, cases, folder / "masks")

        times, _ = clock({"ours": run_ours, "nnU-Net": run_theirs}, rounds)
    return [
        f"| {num_cases} crops of 35×51×35 | ours, from image file to mask file | "
        "nnU-Net's default network, 8 flips, sliding window and argmax alone | ratio |",
        "|---|---|---|---|",
        f"| seconds | {spread(times['ours'], ' s')} | {spread(times['nnU-Net'], ' s')} | "
        f"{ratio(times, 'ours', 'nnU-Net')} |",
    ]


@dataclass(frozen=True)
class MemoryCase:
    """A prediction whose memory is measured."""

    shape: Shape
    num_classes: int
    num_features: int = 16
    target: Shape | None = None
    side: int = 96
    more: int | None = None


MEMORY_CASES = {
    "512×512×600, 3 classes": MemoryCase((512, 512, 600), 3),
    "512×512×600, 30 classes": MemoryCase((512, 512, 600), 30),
    "512×512×600, 104 classes": MemoryCase((512, 512, 600), 104),
    "512×512×600, 104 classes, 1 GiB allowed": MemoryCase((512, 512, 600), 104, more=2**30),
    "128³ onto 203³, 30 classes, windows of 64³": MemoryCase(
        (128, 128, 128), 30, target=(203, 203, 203), side=64
    ),
    "the same, 95 MiB allowed": MemoryCase(
        (128, 128, 128), 30, target=(203, 203, 203), side=64, more=95 * 2**20
    ),
    "197×233×189 onto 313×370×300, 30 classes": MemoryCase((197, 233, 189), 30, target=(313, 370, 300)),
}


def measure_memory(rounds: int) -> list[str]:
    del rounds  # memory has hardly any spread
    rows = []
    for name, case in MEMORY_CASES.items():
        command = [sys.executable, __file__, "--one", name]
        told = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        full = 4 * case.num_classes * math.prod(case.target or case.shape)
        rows.append(
            f"| {name} | {format_size(told['peak'])} | {format_size(full)} | {told['peak'] / full:.3f} | "
            f"{told['seconds']:.0f} s | {told['plan']} |"
        )
        print(rows[-1], file=sys.stderr, flush=True)
    header = [
        "| no network, 16 features, windows of 96³ if not said | peak beyond image and network | "
        "full scores | share | time | plan |",
        "|---|---|---|---|---|---|",
    ]
    return [*header, *rows]


def measure_one(case: MemoryCase) -> None:
    """Peak memory of one case in this process, as JSON."""
    window = (case.side, case.side, case.side)
    target = case.target or case.shape
    spacing = [(n - 1) / (m - 1) for n, m in zip(case.shape, target, strict=True)]
    stub = Stub(case.num_classes, case.num_features, window)
    setting = Setting(stub, torch.ones(1, *case.shape), case.num_classes, window)
    labeller = build_labeller(setting)
    # Libraries are loaded, and the window's memory is known, before anything is measured.
    labeller.label(Prepared(torch.zeros(1, *window), np.eye(4)), Grid(window, np.eye(4)), 2**40)
    before = resident_bytes()
    summed: Any = stub if stub.ready is not None else stub.forward_features
    some = replace(setting, network=summed, image=setting.image[:, :192, :192, :192])
    bare_peak = before + measure_peak(lambda: bare_in_lanes(some), DEVICE)
    grid = Grid(target, np.diag([*spacing, 1.0]))
    budget = None if case.more is None else bare_peak + case.more
    plans: list[Plan] = []
    start = time.perf_counter()
    before = resident_bytes()
    peak = before + measure_peak(
        lambda: labeller.label(Prepared(setting.image, np.eye(4)), grid, budget, plans.append), DEVICE
    )
    seconds = time.perf_counter() - start
    told = {"peak": peak - bare_peak, "seconds": seconds, "plan": str(plans[0])}
    print(json.dumps(told))


NOTES = """\
The networks are untrained, so many voxels are undecided: labels differ more than in use. MONAI moves
the last window of an axis back where ours are spaced evenly; where its windows lie elsewhere (sides that
half windows do not divide), labels differ for that reason alone. nnU-Net sums scores in 16 bits. Ours and the
bare network keep freed memory, as `clinseg predict` does; the peers run as their users run them."""

PARTS = {
    "buffers": measure_buffers,
    "network": measure_network,
    "case": measure_case,
    "empty": measure_empty,
    "memory": measure_memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Sliding-window prediction against its peers.")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/benchmarks/inference.md"))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        measure_one(MEMORY_CASES[arguments.one])
        return
    is_gpu = DEVICE.type == "cuda"
    machine = torch.cuda.get_device_name() if is_gpu else f"{torch.get_num_threads()} CPU cores"
    page = [
        "# Sliding-window prediction against its peers",
        f"Measured on {machine} with torch {torch.__version__} in {arguments.rounds} rounds by "
        f"`python benchmarks/inference.py --only {' '.join(arguments.only)} --rounds {arguments.rounds}`; "
        "median (smallest to largest)." + ("" if is_gpu else " On a GPU: not measured."),
        NOTES,
        *("\n".join(PARTS[part](arguments.rounds)) for part in arguments.only),
    ]
    arguments.output.write_text("\n\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
