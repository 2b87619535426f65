"""Augmentation of the images of training samples: RandAugment and random erasing."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.scene import Scene
from c2fmae.data.transforms import MAX_CROP_ATTEMPTS, Transform

GEOMETRIC_OPS = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
"""Operations of RandAugment that move pixels. They are not used on images with maps, which would not be aligned."""

_ERASE_AREA = (0.02, 1 / 3)  # fraction of the image that is erased; timm's range
_ERASE_ASPECT = (0.3, 1 / 0.3)  # height of the erased rectangle divided by its width; timm's range


@dataclass(frozen=True, kw_only=True)
class AugmentedView:
    """A view with an augmented image; its maps, if any, are unchanged."""

    view: Transform
    rand_augment: str | None
    """RandAugment in timm's format, such as `rand-m9-mstd0.5-inc1`; None disables it."""
    erase_prob: float
    """Probability that a rectangle of the image is replaced by noise."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Per channel, in [0, 1]: the colour that fills gaps, and the distribution of the noise."""

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        """Return a view with an augmented image."""
        sample = self.view(scene, rng)
        if "rgb" not in sample.maps:
            return sample
        image, has_maps = sample.maps["rgb"], len(sample.maps) > 1
        if self.rand_augment is not None:
            image = self._apply_rand_augment(image, int(rng.integers(1 << 32)), photometric_only=has_maps)
        if rng.random() < self.erase_prob:
            image = random_erase(image, rng, mean=self.mean, std=self.std)
        return replace(sample, maps={**sample.maps, "rgb": image})

    def _apply_rand_augment(self, image: Tensor, seed: int, *, photometric_only: bool) -> Tensor:
        if len(image) != 3:
            raise UserError(f"rand_augment: expected images of 3 channels, got {len(image)}. Set it to null")
        change = self._photometric_transform if photometric_only else self._any_transform
        with seeded_global_rngs(seed):
            changed = change(Image.fromarray(image.permute(1, 2, 0).numpy()))
        return torch.from_numpy(np.array(changed)).permute(2, 0, 1).contiguous()

    @cached_property
    def _any_transform(self) -> Callable[[Image.Image], Image.Image]:
        return self._build_rand_augment(None)

    @cached_property
    def _photometric_transform(self) -> Callable[[Image.Image], Image.Image]:
        from timm.data import auto_augment

        ops = (
            auto_augment._RAND_INCREASING_TRANSFORMS
            if "inc1" in self._rand_augment_tokens
            else auto_augment._RAND_TRANSFORMS
        )
        return self._build_rand_augment([name for name in ops if name not in GEOMETRIC_OPS])

    @property
    def _rand_augment_tokens(self) -> list[str]:
        return (self.rand_augment or "").split("-")

    def _build_rand_augment(self, ops: list[str] | None) -> Callable[[Image.Image], Image.Image]:
        from timm.data.auto_augment import rand_augment_transform  # timm takes seconds to import

        try:
            hparams = {
                "translate_const": 100,  # used by operations that are in none of timm's lists
                "img_mean": tuple(min(255, round(255 * value)) for value in self.mean),
                "interpolation": Image.Resampling.BICUBIC,
            }
            change: Callable[[Image.Image], Image.Image] = rand_augment_transform(
                self.rand_augment or "", hparams, transforms=ops
            )
        except (AssertionError, ValueError) as error:
            expected = "timm's format, such as rand-m9-mstd0.5-inc1"
            raise UserError(f"rand_augment: expected {expected}, got {self.rand_augment!r}") from error
        return change


def random_erase(
    image: UInt8[Tensor, "channels height width"],
    rng: np.random.Generator,
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> UInt8[Tensor, "channels height width"]:
    """Replace a random rectangle of an image by Gaussian noise with the given mean and deviation per channel.

    timm draws the noise after standardisation; here it is clipped to the range of a byte.
    """
    height, width = image.shape[-2:]
    for size, shape, down, across in rng.random((MAX_CROP_ATTEMPTS, 4)).tolist():
        area = height * width * (_ERASE_AREA[0] + (_ERASE_AREA[1] - _ERASE_AREA[0]) * size)
        aspect = _ERASE_ASPECT[0] * (_ERASE_ASPECT[1] / _ERASE_ASPECT[0]) ** shape
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < rows < height and 0 < columns < width:
            top, left = int(down * (height - rows + 1)), int(across * (width - columns + 1))
            noise = rng.standard_normal((len(image), rows, columns), np.float32)
            means, stds = (np.array(values, np.float32)[:, None, None] for values in (mean, std))
            changed = image.clone()
            noise = (255 * (means + stds * noise)).round().clip(0, 255).astype(np.uint8)
            changed[:, top : top + rows, left : left + columns] = torch.from_numpy(noise)
            return changed
    return image


@contextmanager
def seeded_global_rngs(seed: int) -> Iterator[None]:
    """Seed Python's and NumPy's global generators in the block, and restore their state after it."""
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
