"""What else is done to a training sample's photo: RandAugment and random erasing, each a function of its own noise."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.scene import Scene
from c2fmae.data.transforms import TRIES, Transform

MOVING = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
"""What of RandAugment moves things about: a photo's maps would not follow."""

_AREA, _ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)  # of what is erased: share of the photo, width by height; timm's


@dataclass(frozen=True, kw_only=True)
class Augmented:
    """A view whose photo is changed too; its maps, if it has any, stay as they are."""

    view: Transform
    rand_augment: str | None
    """In timm's words, as in `rand-m9-mstd0.5-inc1`."""
    erasing: float
    """How often a part of the photo gives way to noise."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Of the photos: what is moved in is of this mean, and noise like them."""

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        """Take the view, and change its photo."""
        sample = self.view(scene, rng)
        if "rgb" not in sample.maps:
            return sample
        photo, has_maps = sample.maps["rgb"], len(sample.maps) > 1
        if self.rand_augment is not None:
            photo = self._rand_augmented(photo, int(rng.integers(1 << 32)), keeps_places=has_maps)
        if rng.random() < self.erasing:
            photo = erased(photo, rng, mean=self.mean, std=self.std)
        return Scene(sample.key, {**sample.maps, "rgb": photo}, sample.label, sample.label_stride)

    def _rand_augmented(self, photo: Tensor, seed: int, *, keeps_places: bool) -> Tensor:
        if len(photo) != 3:
            raise UserError(f"rand_augment: is for photos of 3 channels, and these have {len(photo)}. Set it to null")
        change = self._still if keeps_places else self._free
        with seeded_globals(seed):
            changed = change(Image.fromarray(photo.permute(1, 2, 0).numpy()))
        return torch.from_numpy(np.array(changed)).permute(2, 0, 1).contiguous()

    @cached_property
    def _free(self) -> Callable[[Image.Image], Image.Image]:
        return self._changes(None)

    @cached_property
    def _still(self) -> Callable[[Image.Image], Image.Image]:
        from timm.data import auto_augment

        ops = auto_augment._RAND_INCREASING_TRANSFORMS if "inc1" in self._words else auto_augment._RAND_TRANSFORMS
        return self._changes([name for name in ops if name not in MOVING])

    @property
    def _words(self) -> list[str]:
        return (self.rand_augment or "").split("-")

    def _changes(self, ops: list[str] | None) -> Callable[[Image.Image], Image.Image]:
        from timm.data.auto_augment import rand_augment_transform  # timm takes seconds to import

        try:
            hparams = {
                "translate_const": 100,  # for the ops of fixed length, which none of timm's lists has
                "img_mean": tuple(min(255, round(255 * value)) for value in self.mean),
                "interpolation": Image.Resampling.BICUBIC,
            }
            change: Callable[[Image.Image], Image.Image] = rand_augment_transform(
                self.rand_augment or "", hparams, transforms=ops
            )
        except (AssertionError, ValueError) as error:
            example = "timm's words, as in rand-m9-mstd0.5-inc1"
            raise UserError(f"rand_augment: expected {example}, got {self.rand_augment!r}") from error
        return change


def erased(
    photo: UInt8[Tensor, "channels height width"],
    rng: np.random.Generator,
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> UInt8[Tensor, "channels height width"]:
    """Return a photo of which a random rectangle is noise, normal with the photos' mean and deviation.

    timm draws the noise of standardised photos; this one is held to what a byte can say.
    """
    height, width = photo.shape[-2:]
    for size, shape, down, across in rng.random((TRIES, 4)).tolist():
        area = height * width * (_AREA[0] + (_AREA[1] - _AREA[0]) * size)
        aspect = _ASPECT[0] * (_ASPECT[1] / _ASPECT[0]) ** shape
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < rows < height and 0 < columns < width:
            top, left = int(down * (height - rows + 1)), int(across * (width - columns + 1))
            noise = rng.standard_normal((len(photo), rows, columns), np.float32)
            means, stds = (np.array(each, np.float32)[:, None, None] for each in (mean, std))
            changed = photo.clone()
            noise = (255 * (means + stds * noise)).round().clip(0, 255).astype(np.uint8)
            changed[:, top : top + rows, left : left + columns] = torch.from_numpy(noise)
            return changed
    return photo


@contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Let what draws from Python's and NumPy's global generators draw by a seed, and leave them as they were."""
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
