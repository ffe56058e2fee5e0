"""Ways back that add noise and do nothing else: to MR magnitudes, and to images with grain of one texture."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.config.generators import GeneratorSection
from pipeline.networks.attention_unet import AttentionUNet
from pipeline.networks.generators import FIRST_STRENGTH, AbstractGenerator, ResidualEncoderDecoder
from transforms.enhancement import NO_SIGNAL

_LEAST_SQUARE: Final = 1e-6
_TEXTURE: Final = 7
_SMOOTHED: Final = 17
_CONVOLVE: Final = {2: functional.conv2d, 3: functional.conv3d}


class RicianNoise(AbstractGenerator):
    """The way back where it adds noise to MR magnitudes and does nothing else (Gudbjartsson and Patz 1995).

    A magnitude is the length of two parts, both with noise of one strength. In phase stands the image, so
    that what is dark becomes brighter, by more than a network finds out that has to invent it (measured in
    `docs/enhancement.md`). The strength, in deviations of the image, is the mean of what the body makes of
    what it sees: one number a window and channel. As a map it followed the anatomy.

    Args:
        body: Sees all channels but the random numbers, and gives as many as an image has.
        section: The shape of the network.
        channels: Of an image.
    """

    def __init__(
        self, body: ResidualEncoderDecoder | AttentionUNet, section: GeneratorSection, channels: int
    ) -> None:
        super().__init__(section, channels)
        self.body = body
        nn.init.zeros_(body.head.weight)
        nn.init.constant_(body.head.bias, FIRST_STRENGTH)

    def forward(self, image: Tensor) -> Tensor:
        """A magnitude with noise.

        Args:
            image: (B, channels · (2 · neighbours + 1) + 2, …), as `Generator` takes it; no signal is at
                `NO_SIGNAL`, and the two channels of noise stand last.

        Returns:
            (B, channels, …) on the grid of `image`.

        Raises:
            ValueError: As `Generator`.
        """
        strength = self.body(image[:, :-2]).mean(dim=tuple(range(2, image.ndim)), keepdim=True)
        in_phase = image[:, self._image] - NO_SIGNAL + strength * image[:, -2, None]
        across = strength * image[:, -1, None]
        # Nowhere 0, where a root has no slope.
        made: Tensor = (in_phase.square() + across.square() + _LEAST_SQUARE).sqrt() + NO_SIGNAL
        return made


class GrainNoise(AbstractGenerator):
    """The way back where it adds noise of one texture and does nothing else, as a CT at a lower dose has.

    White noise is convolved with a kernel that is learnt, then multiplied by a map of its strength and added:
    no mean is shifted, whatever the discriminator says. The map is what the body makes of what it sees,
    averaged over 17 voxels along every axis; sharper, it would follow the anatomy.

    Args:
        body: Sees all channels but the random numbers, and gives as many as an image has, times those of
            the noise.
        section: The shape of the network.
        channels: Of an image.
        noise_channels: Of the random numbers; each has a texture and a map of its own.

    Attributes:
        textures: `(noise channels, 1, 7, …)`; white noise at first. Only their shape counts, not their size.
    """

    def __init__(
        self,
        body: ResidualEncoderDecoder | AttentionUNet,
        section: GeneratorSection,
        channels: int,
        noise_channels: int,
    ) -> None:
        super().__init__(section, channels)
        self.body = body
        self._dimensions, self._channels, self._num = section.dimensions, channels, noise_channels
        nn.init.zeros_(body.head.weight)
        nn.init.constant_(body.head.bias, FIRST_STRENGTH)
        white = torch.zeros(_TEXTURE**section.dimensions)
        white[len(white) // 2] = 1
        size = [_TEXTURE] * section.dimensions
        textures = white.view(1, 1, *size).repeat(noise_channels, 1, *[1] * section.dimensions)
        self.textures = nn.Parameter(textures)

    def forward(self, image: Tensor) -> Tensor:
        """An image with noise.

        Args:
            image: (B, channels · (2 · neighbours + 1) + noise channels, …), as `Generator` takes it.

        Returns:
            (B, channels, …) on the grid of `image`.

        Raises:
            ValueError: As `Generator`.
        """
        seen, white = image[:, : -self._num], image[:, -self._num :]
        strengths = self._smooth(self.body(seen)).split(self._channels, dim=1)
        made = image[:, self._image]
        for strength, grain in zip(strengths, self._colour(white).split(1, dim=1), strict=True):
            made = made + strength * grain
        return made

    def _colour(self, white: Tensor) -> Tensor:
        """The noise of each channel with its texture; its variance is that of `white`."""
        kernels = self.textures / self.textures.flatten(1).norm(dim=1).view(-1, *[1] * (white.ndim - 1))
        # At its ends the noise goes on at the other end: it has one variance everywhere.
        padded = functional.pad(white, [_TEXTURE // 2] * (2 * self._dimensions), mode="circular")
        return _CONVOLVE[self._dimensions](padded, kernels, groups=self._num)

    def _smooth(self, maps: Tensor) -> Tensor:
        """The mean of what lies around each voxel, of what there is of it."""
        for axis in range(self._dimensions):
            size = [1] * self._dimensions
            size[axis] = _SMOOTHED
            padding = [length // 2 for length in size]
            box = maps.new_ones(maps.shape[1], 1, *size)
            convolve = _CONVOLVE[self._dimensions]
            count = convolve(maps.new_ones(1, 1, *maps.shape[2:]), box[:1], padding=padding)
            maps = convolve(maps, box, padding=padding, groups=maps.shape[1]) / count
        return maps
