"""The segmentation task: Dice and cross-entropy on augmented patches, judged by Dice on whole volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.config import SegmentationJob, flipped_axes
from pipeline.data.batches import Batch
from pipeline.data.chunks import load
from pipeline.data.prepared_cases import PreparedCase
from pipeline.inference.labelling import Labeller
from pipeline.labels import LabelContract
from pipeline.metrics import label_map_dice
from pipeline.networks import Segmenter, build_network
from pipeline.networks.compiling import compiler_faults
from pipeline.networks.pretrained import Source, load_pretrained
from pipeline.training.distributed import ALONE, World
from pipeline.training.fitter import Fitter
from pipeline.training.losses import IGNORED, DeepSupervision, DiceCrossEntropy
from pipeline.training.task import AbstractTask
from pipeline.volume import Grid
from transforms.augmentation import Augmentation
from transforms.keys import IMAGE, LABEL
from transforms.preprocessing import Prepared


class SegmentationTask(AbstractTask):
    """Fits one network to label maps.

    Args:
        job: The complete job.
        contract: Names and values of the labels.
        num_channels: Of the images.
        validation: Prepared cases held out, possibly none.
        device: Where to compute.
        source: The model it starts from, if any; not needed if a state is loaded anyway.
        world: The processes that train together.
    """

    metric = "validation/dice/mean"

    def __init__(
        self,
        job: SegmentationJob,
        contract: LabelContract,
        num_channels: int,
        validation: Sequence[PreparedCase],
        device: torch.device,
        source: Source | None = None,
        world: World = ALONE,
    ) -> None:
        self.job = job
        self.contract = contract
        self.patience = job.training.early_stopping
        self.validation = validation
        self.device = device
        self.world = world
        torch.manual_seed(job.training.seed)
        self.network = build_network(job.network, num_channels, len(contract.channel_values)).to(device)
        if source is not None:
            load_pretrained(self.network, source)
        self.fitter = Fitter(
            self.network, self.network.encoder, self.network.stages, job.training, device, world
        )
        # A compiled way forward beside the network, not round it: its weights keep their names.
        forward_deep = self.network.forward_deep
        self.forward_deep = torch.compile(forward_deep) if job.training.compile else forward_deep
        loss = DiceCrossEntropy(
            is_regions=contract.regions is not None,
            has_ignored=contract.ignore_value is not None,
            total=world.total,
        )
        self.loss = DeepSupervision(loss)
        axis, pairs = job.preprocessing.left_right_axis, job.data.left_right_pairs
        self.laterality = contract.channel_laterality(axis, pairs)
        self.augmentation = Augmentation(
            job.augmentation,
            job.training.patch_size,
            job.preprocessing.spacing,
            contract.label_laterality(axis, pairs),
        )
        self.targets = _build_target_table(contract).to(device)

    @property
    def learning_rate(self) -> float:
        """That of the latest step."""
        return self.fitter.learning_rate

    def training_step(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """One step; see `AbstractTask`."""
        return {"training/loss": self.fitter.step(lambda: self._compute_loss(batch), progress)}

    def rehearse(self, batch: Batch) -> None:
        """Forward and backward without a step; see `AbstractTask`."""
        with compiler_faults("training.compile", "set it to false"):
            self.fitter.rehearse(lambda: self._compute_loss(batch))

    def least_bytes(self, shape: Sequence[int]) -> int:
        """What a step takes at the very least; see `AbstractTask`."""
        return self.fitter.least_bytes(shape, self.job.training.patch_size, _forward_deep)

    def validate(self) -> dict[str, float]:
        """Mean Dice per structure over the validation cases that label it, on the network's grid."""
        labeller = self._build_labeller()
        structures = list(self.contract.structures)
        found = torch.zeros(2, len(structures), dtype=torch.float64)  # sums, and of how many cases
        # Every process judges its share of them.
        for prepared in self.validation[self.world.rank :: self.world.size]:
            for name, dice in self._validate_case(labeller, prepared).items():
                found[:, structures.index(name)] += torch.tensor([dice, 1.0])
        sums, counts = self.world.total(found).tolist()
        metrics = {
            f"validation/dice/{name}": total / count
            for name, total, count in zip(structures, sums, counts, strict=True)
            if count
        }
        return metrics | {self.metric: float(np.mean(list(metrics.values())))} if metrics else {}

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights if there are such, else the network's."""
        return self.fitter.weights()

    def state_dict(self) -> dict[str, Any]:
        """Everything that training needs to go on."""
        return self.fitter.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.fitter.load_state_dict(state)

    def _compute_loss(self, batch: Batch) -> Tensor:
        image, label = (batch.tensors[key].to(self.device, non_blocking=True) for key in (IMAGE, LABEL))
        draws = self.augmentation.draw(batch.seeds, image.shape[1])
        image, label = self.augmentation.apply(image, label, draws)
        labelled = self._labelled_channels(batch, [self.augmentation.exchanges_sides(d) for d in draws])
        with self.fitter.autocast():
            logits = self.forward_deep(image)
        loss: Tensor = self.loss(logits, self._build_target(label), labelled)
        return loss

    def _build_labeller(self) -> Labeller:
        # Post-processing belongs to the patient's grid, where the kept checkpoint is judged.
        section = self.job.inference.model_copy(update={"largest_component": ()})
        return Labeller(
            [self.fitter.judged_network.eval()],
            self.contract,
            section,
            self.job.inference.window_size or self.job.training.patch_size,
            self.device,
            mixed_precision=self.job.training.mixed_precision,
            flipped_axes=flipped_axes(self.job),
            laterality=self.laterality,
        )

    def _build_target(self, label: Tensor) -> Tensor:
        if self.contract.regions is not None:
            return self.targets[label.long()].movedim(-1, 1).float()
        if self.contract.ignore_value is None:
            return label.long()
        return label.long().masked_fill_(label == len(self.contract.values), IGNORED)

    def _labelled_channels(self, batch: Batch, exchanged: Sequence[bool]) -> Tensor | None:
        """`(B, K)` bool, on the CPU; None if every sample has all labels.

        Args:
            batch: Its samples as drawn.
            exchanged: Whether left and right have changed places in a sample since.
        """
        if all(names is None for names in batch.labelled):
            return None
        channels, structures = self.contract.channel_names, self.contract.structures
        rows = []
        for names, is_exchanged in zip(batch.labelled, exchanged, strict=True):
            row = [names is None or name in names or name not in structures for name in channels]
            if self.laterality is not None and is_exchanged:
                row = [row[partner] for partner in self.laterality.partners]
            rows.append(row)
        return torch.tensor(rows)

    def _validate_case(self, labeller: Labeller, prepared: PreparedCase) -> dict[str, float]:
        height, width, depth = prepared.label.shape[1:]
        grid = Grid((height, width, depth), prepared.affine)
        predicted = labeller.label(Prepared(load(prepared.image), prepared.affine), grid).array
        label = load(prepared.label)[0].numpy()
        if self.contract.ignore_value is not None:
            known = label < len(self.contract.values)
            predicted, label = predicted[known], label[known]
        reference = np.asarray(self.contract.values, dtype=np.uint16)[label]
        structures = self.contract.structures
        labelled = structures if prepared.labelled is None else prepared.labelled
        return label_map_dice(predicted, reference, {name: structures[name] for name in labelled})


def _build_target_table(contract: LabelContract) -> Tensor:
    """`(num_label_indices, K)`: whether a label index belongs to a region; `IGNORED` for ignored voxels."""
    regions = (contract.regions or {}).values()
    rows = [[int(value in region) for region in regions] for value in contract.values]
    return torch.tensor([*rows, [IGNORED] * len(regions)], dtype=torch.int8)


def _forward_deep(network: Segmenter, image: Tensor) -> list[Tensor]:
    return network.forward_deep(image)
