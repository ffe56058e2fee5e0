"""Enhancement learnt without pairs: two generators, two discriminators, in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.config import EnhancementJob
from pipeline.data.batches import Batch
from pipeline.data.enhancement_images import EnhancementImage
from pipeline.networks import build_discriminator, build_generator
from pipeline.training.adversarial import (
    Averages,
    ImagePool,
    Stepper,
    least_squares,
    rehearsed,
    total_variation,
)
from pipeline.training.enhancement import (
    BACKWARD,
    FORWARD,
    distance,
    generator_bytes,
    validate_enhancement,
)
from pipeline.training.task import AbstractTask
from transforms.keys import SOURCE, TARGET


class CycleGANTask(AbstractTask):
    """Two generators and two discriminators in turn (Zhu et al. 2017, arXiv:1703.10593).

    The generators step first, then both discriminators, which see what was made before the step. With noise
    channels the way back is random (Almahairi et al. 2018, arXiv:1802.10151).

    Args:
        job: The complete job.
        num_channels: Of the images.
        validation: Prepared sources held out, possibly none.
        device: Where to compute.
    """

    metric = None
    patience = None

    def __init__(
        self,
        job: EnhancementJob,
        num_channels: int,
        validation: Sequence[EnhancementImage],
        device: torch.device,
    ) -> None:
        self.job = job
        self.validation = validation
        self.device = device
        self.num_channels = num_channels
        network, section = job.network, job.training
        torch.manual_seed(section.seed)
        forward = build_generator(network, num_channels).to(device)
        backward = build_generator(network, num_channels, network.noise_channels).to(device)
        self.forward, self.backward = forward, backward
        self.source_critic = build_discriminator(network, num_channels).to(device)
        self.target_critic = build_discriminator(network, num_channels).to(device)
        rates = [None, section.backward_learning_rate]
        self.generators = Stepper([forward, backward], section, device, rates)
        critics = [self.source_critic, self.target_critic]
        self.critics = Stepper(critics, section, device, [section.discriminator_learning_rate] * 2)
        self.averages = Averages({FORWARD: forward, BACKWARD: backward}, section.ema_decay)
        self.source_pool, self.target_pool = ImagePool(section.pool_size), ImagePool(section.pool_size)

    @property
    def learning_rate(self) -> float:
        """That of the latest step."""
        return self.generators.learning_rate

    def training_step(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """A step of the generators, then one of the discriminators; see `AbstractTask`."""
        self._set_training()
        source, target = self._take(batch)
        terms, made_source, made_target = self._generate(source, target)
        self.generators.step(self._weigh(terms), progress)
        self.averages.update()
        judged = self._judge(
            source, target, self.source_pool.exchange(made_source), self.target_pool.exchange(made_target)
        )
        self.critics.step(judged["discriminator_source"] + judged["discriminator_target"], progress)
        return {f"training/{name}": term.detach() for name, term in (terms | judged).items()}

    def rehearse(self, batch: Batch) -> None:
        """Both halves of a step, without learning; see `AbstractTask`."""
        self._set_training()
        source, target = self._take(batch)

        def compute() -> list[Tensor]:
            terms, made_source, made_target = self._generate(source, target)
            judged = self._judge(source, target, made_source.detach(), made_target.detach())
            return [self._weigh(terms), judged["discriminator_source"] + judged["discriminator_target"]]

        rehearsed([self.forward, self.backward, self.source_critic, self.target_critic], compute)

    def least_bytes(self, shape: Sequence[int]) -> int:
        """What the step's passes of generators keep for the backward pass; see `AbstractTask`."""
        section = self.job.training
        cycles = bool(section.target_cycle_weight) + bool(section.source_cycle_weight)
        num_passes = 2 + cycles + 2 * bool(section.identity_weight)
        return generator_bytes(self.forward, self.generators, shape, num_passes)

    def validate(self) -> dict[str, float]:
        """PSNR and SSIM where the truth is known, on the network's grid; see `validate_enhancement`."""
        return validate_enhancement(self.averages.judged(FORWARD), self.job, self.validation, self.device)

    def weights(self) -> dict[str, Tensor]:
        """Both generators', averaged if there are averages."""
        return self.averages.weights()

    def state_dict(self) -> dict[str, Any]:
        """Everything that training needs to go on, pools included."""
        return {
            "generators": self.generators.state_dict(),
            "critics": self.critics.state_dict(),
            "averages": self.averages.state_dict(),
            "source_pool": self.source_pool.state_dict(),
            "target_pool": self.target_pool.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.generators.load_state_dict(state["generators"])
        self.critics.load_state_dict(state["critics"])
        self.averages.load_state_dict(state["averages"])
        self.source_pool.load_state_dict(state["source_pool"], self.device)
        self.target_pool.load_state_dict(state["target_pool"], self.device)

    def render(self, batch: Batch) -> dict[str, Tensor]:
        """What becomes of a batch both ways and back, `(B, C, …)` each by a name for people."""
        source, target = self._take(batch)
        forward, backward = self.averages.judged(FORWARD).eval(), self.averages.judged(BACKWARD).eval()
        with torch.no_grad(), torch.random.fork_rng(device_type="cuda"):
            enhanced = forward(source)
            degraded = backward(self._with_noise(target))
            return {
                "source": self._middle(source),
                "enhanced": enhanced,
                "and back": backward(self._with_noise(self._as_input(enhanced))),
                "change": enhanced - self._middle(source),
                "target": self._middle(target),
                "degraded": degraded,
                "and back again": forward(self._as_input(degraded)),
            }

    def _take(self, batch: Batch) -> tuple[Tensor, Tensor]:
        source, target = (batch.tensors[key].to(self.device, non_blocking=True) for key in (SOURCE, TARGET))
        return source, target

    def _set_training(self) -> None:
        for network in (*self.generators.networks, *self.critics.networks):
            network.train()

    def _generate(self, source: Tensor, target: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The terms of the generators' loss, and what was made of target and of source."""
        section = self.job.training
        # They only pass a gradient on; their own steps come after.
        for critic in self.critics.networks:
            critic.requires_grad_(False)
        with self.generators.autocast():
            made_target = self.forward(source)
            made_source = self.backward(self._with_noise(target))
            terms = {
                "adversarial_target": least_squares(self.target_critic(made_target), is_real=True),
                "adversarial_source": least_squares(self.source_critic(made_source), is_real=True),
            }
            if section.target_cycle_weight:
                seen = self._degrade(target) if self.job.network.noise_channels else made_source
                cycled = self.forward(self._as_input(seen))
                terms["cycle_target"] = distance(cycled, self._middle(target))
            if section.source_cycle_weight:
                cycled = self.backward(self._with_noise(self._as_input(made_target)))
                terms["cycle_source"] = distance(cycled, self._middle(source))
            if section.identity_weight:
                terms["identity_target"] = distance(self.forward(target), self._middle(target))
                same = self.backward(self._with_noise(source))
                terms["identity_source"] = distance(same, self._middle(source))
            if section.variation_weight:
                terms["variation"] = total_variation(made_target.float())
        for critic in self.critics.networks:
            critic.requires_grad_(True)
        return terms, made_source, made_target

    def _degrade(self, target: Tensor) -> Tensor:
        """What the averaged way back makes of targets, for the way forward to learn from as from pairs.

        No gradient goes back: what is random cannot be undone wholly, and the way back is not to be punished
        for it, or it would add nothing. It and its discriminator chase each other about what is right, and
        their average is nearer to it than where they are.
        """
        with torch.no_grad():
            degraded: Tensor = self.averages.judged(BACKWARD)(self._with_noise(target))
        return degraded

    def _weigh(self, terms: Mapping[str, Tensor]) -> Tensor:
        section = self.job.training
        weights = {
            "adversarial_target": section.adversarial_weight,
            "adversarial_source": section.adversarial_weight,
            "cycle_target": section.target_cycle_weight,
            "cycle_source": section.source_cycle_weight,
            "identity_target": section.identity_weight,
            "identity_source": section.identity_weight,
            "variation": section.variation_weight,
        }
        return torch.stack([weights[name] * term for name, term in terms.items()]).sum()

    def _judge(
        self, source: Tensor, target: Tensor, made_source: Tensor, made_target: Tensor
    ) -> dict[str, Tensor]:
        """The discriminators' losses, and what they take real and made images for (1 real, 0 made)."""
        sides = {
            "source": (self.source_critic, source, made_source),
            "target": (self.target_critic, target, made_target),
        }
        judged = {}
        with self.critics.autocast():
            for name, (critic, real, made) in sides.items():
                on_real, on_made = critic(self._middle(real)), critic(made)
                loss = least_squares(on_real, is_real=True) + least_squares(on_made, is_real=False)
                judged[f"discriminator_{name}"] = loss / 2
                judged[f"judgement_{name}_real"] = on_real.float().mean()
                judged[f"judgement_{name}_made"] = on_made.float().mean()
        return judged

    def _middle(self, image: Tensor) -> Tensor:
        """Of slices with their neighbours the slices themselves."""
        first = self.job.network.neighbours * self.num_channels
        return image[:, first : first + self.num_channels]

    def _as_input(self, made: Tensor) -> Tensor:
        """What was made, as a generator takes it: its neighbours were not made, and it stands in for them."""
        num = 2 * self.job.network.neighbours + 1
        return made.repeat(1, num, *[1] * (made.ndim - 2)) if num > 1 else made

    def _with_noise(self, image: Tensor) -> Tensor:
        num = self.job.network.noise_channels
        if not num:
            return image
        # On the CPU, so that the same seed gives the same numbers whatever the device.
        noise = torch.randn(len(image), num, *image.shape[2:]).to(image)
        return torch.cat((image, noise), dim=1)
