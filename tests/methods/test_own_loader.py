"""Masks of a batch that a user's own loader made: those of the pre-training task for the same noise."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from c2fmae.core.distributed import World
from c2fmae.core.scene import SceneBatch
from c2fmae.core.seeding import derive_seed
from c2fmae.data import CentralView, open_scenes
from c2fmae.masking import RowGenerator, mask_scenes, patch_regions
from c2fmae.methods.masked.task import PretrainingTask
from tests.methods.tiny_methods import build_tiny_method

SEED, STEP, PROGRESS = 3, 5, 0.3


def collate(items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


def test_masks_of_a_loader_of_ones_own_are_those_of_pretraining() -> None:
    method = build_tiny_method("c2fmae", "channels={semantic: 23}")
    side, _ = method.config.image_size
    view = CentralView(**method.view_options)
    source = open_scenes("generated", size=side, length=4)
    scenes = [view(source[index]) for index in range(4)]
    loader: DataLoader[Any] = DataLoader([scene.maps for scene in scenes], batch_size=4, collate_fn=collate)  # type: ignore[arg-type]
    (batch,) = loader
    patch = method.patch_size * batch["semantic"].shape[1] // side
    masks = mask_scenes(
        method.policy,
        patch_regions(batch["semantic"], patch),
        patch_regions(batch["instance"], patch),
        num_visible=method.config.resolve_num_visible((side // method.patch_size) ** 2),
        progress=PROGRESS,
        generator=RowGenerator(derive_seed(SEED, "masks", STEP)),
    )
    (part,) = PretrainingTask(method, SEED).split(
        SceneBatch.stack(scenes), num_micro_batches=1, step=STEP, progress=PROGRESS, world=World()
    )
    assert torch.equal(masks.is_masked, part.masks.is_masked)
    assert torch.equal(masks.visible_idx, part.masks.visible_idx)

    keys = tuple(str(index) for index in range(4))
    from_batch = method.sample_masks(
        SceneBatch(keys, batch),
        progress=PROGRESS,
        generator=RowGenerator(derive_seed(SEED, "masks", STEP)),
    )
    assert torch.equal(from_batch.is_masked, masks.is_masked)
