"""The random numbers of masks: all those of a global batch, or only those of some of its images."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from c2fmae.masking._checks import check_concentration
from c2fmae.masking.policies import MaskNoise
from c2fmae.masking.rounding import sample_shares


@dataclass(frozen=True)
class RowGenerator:
    """A generator of the numbers of any images of a batch, at the cost of these images alone.

    The numbers of an image are a function of the seed and of its number in the global batch. So each process draws
    those of its own images, and the batch may be of any size. Two calls with one generator return the same numbers.
    """

    seed: int

    def draw_shares(
        self, images: range, concentration: Float[Tensor, " granularity"]
    ) -> Float64[Tensor, "batch granularity"]:
        """Draw the shares of each image from a Dirichlet distribution.

        One image may take any number of draws, so those of all earlier images are drawn too: 0.05 ms for 2,048.
        """
        shares = np.random.Generator(self._stream(0)).dirichlet(concentration.tolist(), images.stop)
        return torch.from_numpy(shares[images.start :])

    def draw_uniform(self, stream: int, rows: range, width: int) -> Float32[Tensor, "row width"]:
        """Draw numbers in [0, 1) for some of the rows of one of the streams 1, 2, …, which are independent."""
        # A float32 takes half of a 64-bit draw. A row of an odd width leaves one half unused, so that every row starts
        # with a draw of its own.
        draws_per_row = -(-width // 2)
        bits = self._stream(stream).advance(rows.start * draws_per_row)
        numbers = np.random.Generator(bits).random((len(rows), 2 * draws_per_row), dtype=np.float32)
        return torch.from_numpy(numbers)[:, :width]

    def _stream(self, number: int) -> np.random.PCG64:
        return np.random.PCG64(self.seed).jumped(number)


MaskGenerator = torch.Generator | RowGenerator
"""torch's draws the numbers of the whole global batch, and has another state afterwards."""


class MaskDraw(NamedTuple):
    """All random numbers for the masks of some images of a global batch."""

    shares: Float[Tensor, "batch granularity"]
    noise: MaskNoise
    """Its rows are the granularities of each image."""

    def to(self, device: torch.device) -> "MaskDraw":
        """Return the numbers on a device."""
        noise = MaskNoise(*(tensor.to(device, non_blocking=True) for tensor in self.noise))
        return MaskDraw(self.shares.to(device, non_blocking=True), noise)


def draw_decoding_noise(
    generator: MaskGenerator, images: range, total: int, patches: int
) -> Float[Tensor, "batch patch"]:
    """Draw the noise that selects the patches to decode, one number per patch for all granularities of an image.

    A generator of torch must have drawn the noise of the masks before, so that they do not depend on this draw.
    """
    if isinstance(generator, RowGenerator):
        return generator.draw_uniform(6, images, patches)
    return torch.rand(total, patches, generator=generator, device=generator.device)[images.start : images.stop]


def draw_noise(
    generator: MaskGenerator, images: range, total: int, patches: int, concentration: Float[Tensor, " granularity"]
) -> MaskDraw:
    """Draw all random numbers for the masks of some images of a global batch of `total`."""
    check_concentration(concentration)
    count = len(concentration)
    if isinstance(generator, RowGenerator):
        rows = range(images.start * count, images.stop * count)
        shares = generator.draw_shares(images, concentration)
        semantic, instance, random, tie = (generator.draw_uniform(stream, rows, patches) for stream in range(1, 5))
        image = generator.draw_uniform(5, images, 1)[:, 0]
    else:
        own, device = slice(images.start, images.stop), generator.device
        shares = sample_shares(total, concentration, generator=generator)[own]
        noise = torch.rand(total, count, 4, patches, generator=generator, device=device)[own]
        semantic, instance, random, tie = noise.flatten(0, 1).unbind(1)
        image = torch.rand(total, generator=generator, device=device)[own]
    return MaskDraw(shares, MaskNoise(semantic, instance, random, tie, image.repeat_interleave(count)))
