"""nnU-Net on cases of ours: what the benchmarks that measure it share.

It needs `nnunetv2`, which is installed with torch constrained, or torch is replaced.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from pipeline.data.cases import Case

NAME = "Dataset004_Hippocampus"
CONFIGURATION = "3d_fullres"


def prepare_study(cases: Sequence[Case], folder: Path) -> dict[str, Any]:
    """Writes a study in nnU-Net's form, lets it plan and prepare it, and returns its plans.

    Args:
        cases: With an image and a label map each.
        folder: Where nnU-Net keeps everything from now on, in this process.
    """
    paths = {f"nnUNet_{name}": folder / name for name in ("raw", "preprocessed", "results")}
    os.environ.update({name: str(path) for name, path in paths.items()})
    _write_study(cases, paths["nnUNet_raw"] / NAME)
    api = import_module("nnunetv2.experiment_planning.plan_and_preprocess_api")
    api.extract_fingerprints([4], num_processes=1)
    api.plan_experiments([4])
    api.preprocess([4], configurations=[CONFIGURATION], num_processes=[1])
    plans: dict[str, Any] = json.loads((paths["nnUNet_preprocessed"] / NAME / "nnUNetPlans.json").read_text())
    return plans | {"continue_training": False}


def build_trainer(plans: Mapping[str, Any], folder: Path, device: torch.device) -> Any:  # noqa: ANN401  # untyped
    """nnU-Net's trainer of the first fold of a study prepared in that folder, not initialised yet."""
    kind: Any = import_module("nnunetv2.training.nnUNetTrainer.nnUNetTrainer").nnUNetTrainer
    dataset = json.loads((folder / "preprocessed" / NAME / "dataset.json").read_text())
    return kind(plans, CONFIGURATION, 0, dataset, device)


def _write_study(cases: Sequence[Case], folder: Path) -> None:
    for case in cases:
        assert case.label is not None
        for source, target in (
            (case.images[0], f"imagesTr/{case.id}_0000.nii.gz"),
            (case.label, f"labelsTr/{case.id}.nii.gz"),
        ):
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / target)
    facts = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "Anterior": 1, "Posterior": 2},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(facts))
