"""The views and masks of a batch, which data workers prepare."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from c2fmae.config.branches import BranchConfig
from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.scene import SceneBatch
from c2fmae.core.seeding import derive_seed
from c2fmae.masking.noise import RowGenerator
from c2fmae.methods.masked.map_checks import check_images, require_map

DrawMasks = Callable[[BranchConfig, tuple[int, int], range, RowGenerator], Mapping[str, Tensor]]
"""A method's `draw_masks`: it is given the grid of patches and the numbers of the images in the batch."""


@dataclass(frozen=True)
class ViewBatch:
    """The views of the images of a micro-batch, their masks, and what the teacher has computed from them."""

    keys: tuple[str, ...]
    views: Mapping[str, Shaped[Tensor, "batch count channels height width"]]
    """Views by name: bytes until the task standardises them."""
    masks: Mapping[str, Shaped[Tensor, "batch ..."]]
    """Masks by view, or what those depend on besides the teacher: what `draw_masks` has drawn."""
    first: int
    """Number of the first image in the global batch."""
    total: int
    """Images in the global batch."""
    targets: Mapping[str, Shaped[Tensor, "batch ..."]] = field(default_factory=dict)
    """Outputs of the teacher for these images."""
    keys_of_batch: Mapping[str, Shaped[Tensor, "total ..."]] = field(default_factory=dict)
    """Outputs of the teacher for all images of the global batch."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Values in this step of the settings that change in training."""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def image_idx(self) -> Int[Tensor, " batch"]:
        """The numbers of these images in the global batch."""
        return torch.arange(self.first, self.first + len(self), device=self.views["main"].device)

    def images(self, *names: str) -> Shaped[Tensor, "views_and_batch channels height width"]:
        """Return views of the same size in one batch: all images of the first view, then all of the next."""
        return torch.cat([self.views[name].transpose(0, 1).flatten(0, 1) for name in names])

    def to(self, device: str | torch.device) -> "ViewBatch":
        """Return the micro-batch on a device, without waiting for copies from page-locked memory."""
        return self._map_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "ViewBatch":
        """Return the micro-batch in page-locked memory."""
        return self._map_tensors(Tensor.pin_memory)

    def _map_tensors(self, function: Callable[[Tensor], Tensor]) -> "ViewBatch":
        views, masks = (
            {name: function(tensor) for name, tensor in tensors.items()} for tensors in (self.views, self.masks)
        )
        return replace(self, views=views, masks=masks)


@dataclass(frozen=True)
class ViewPreparer:
    """Draws masks and divides batches into micro-batches. It is sent to data workers, so it holds no model."""

    config: BranchConfig
    patch_size: int
    draw_masks: DrawMasks
    seed: int
    divides_batch: bool = True
    """Whether micro-batches are computed one after another, or the whole batch in chunks."""

    def prepare(
        self, scenes: SceneBatch, *, num_micro_batches: int, step: int, progress: float, world: World
    ) -> list[ViewBatch]:
        """Return the batch of a rank in micro-batches; masks depend on the seed, the step and the image's number."""
        del progress
        size = len(scenes)
        rows = range(world.rank * size, (world.rank + 1) * size)
        batch = self.prepare_rows(
            scenes, rows, total=world.size * size, generator_seed=derive_seed(self.seed, "masks", step)
        )
        if not self.divides_batch:
            return [batch]
        starts = range(0, size, size // num_micro_batches)
        return [_slice_images(batch, start, start + size // num_micro_batches) for start in starts]

    def prepare_rows(self, scenes: SceneBatch, rows: range, *, total: int, generator_seed: int) -> ViewBatch:
        """Return scenes with masks, given their numbers in a batch and the seed of its masks."""
        images = require_map(scenes, "rgb")
        check_images("rgb", images, self.config.num_channels("rgb"))
        for name, options in self.config.views.items():
            if name not in scenes.views or scenes.views[name].shape[1] != options.count:
                raise UserError(
                    f"views.{name}: the scenes have no such view. Crop them with the method's training_view"
                )
        grid = images.shape[2] // self.patch_size, images.shape[3] // self.patch_size
        masks = self.draw_masks(self.config, grid, rows, RowGenerator(generator_seed))
        views = {"main": images.unsqueeze(1), **{name: scenes.views[name] for name in self.config.views}}
        device = images.device
        masks = {name: mask.to(device) for name, mask in masks.items()}
        return ViewBatch(scenes.keys, views, masks, first=rows.start, total=total)


def _slice_images(batch: ViewBatch, start: int, stop: int) -> ViewBatch:
    views, masks = (
        {name: tensor[start:stop] for name, tensor in tensors.items()} for tensors in (batch.views, batch.masks)
    )
    return replace(batch, keys=batch.keys[start:stop], views=views, masks=masks, first=batch.first + start)
