"""Batches of detection from data to collation: the same for every number of ranks, and after a restart."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch

from c2fmae.config.data import LoaderConfig
from c2fmae.core.scene import Scene
from c2fmae.core.training import TrainingPlan
from c2fmae.data import DatasetInfo
from c2fmae.data.crops.scale_jitter import ScaleJitter
from c2fmae.data.crops.short_side import ShortSideResize
from c2fmae.data.detection_batch import DetectionBatch
from c2fmae.data.image_sizes import read_image_sizes
from c2fmae.data.sampler import PredictSizes, SizePredictor
from tests.data.crops.object_scenes import draw_blobs, make_objects, make_scene

RESIZE = ShortSideResize(sides=(24, 32, 40), max_side=64)
JITTER = ScaleJitter(canvas=(32, 32))


class BlobScenes:
    """Scenes of which two thirds are wide and the others upright."""

    info = DatasetInfo(granularities=("rgb",))
    keys = tuple(f"{index:02d}" for index in range(46))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Scene:
        height, width = (24, 36) if index % 3 else (36, 24)
        objects = make_objects(draw_blobs(np.random.default_rng(index), height, width, index % 4))
        return dataclasses.replace(make_scene(height, width, objects), key=self.keys[index])

    def read_image_bytes(self, index: int) -> None:
        return None


def stream(
    crop: ScaleJitter | ShortSideResize, *, step: int = 0, rank: int = 0, world_size: int = 1, predict: bool = False
) -> list[DetectionBatch]:
    scenes = BlobScenes()
    plan = TrainingPlan(
        steps=10,
        warmup_steps=0,
        steps_per_epoch=5,
        batch_size=8,
        batch_size_per_rank=8 // world_size,
        num_micro_batches=1,
        peak_lr=1.0,
        final_lr_ratio=0.0,
    )
    predict_sizes: PredictSizes | None = None
    if predict:
        predict_sizes = SizePredictor(crop.draw_size, read_image_sizes(scenes), seed=9)
    canvas = crop.canvas if isinstance(crop, ScaleJitter) else None
    collate = partial(DetectionBatch.stack, size=canvas, divisor=8)
    loader = LoaderConfig(workers=0)
    batches = loader.stream_training_batches(
        scenes, crop, plan, step, seed=9, rank=rank, pin_memory=False, collate=collate, predict_sizes=predict_sizes
    )
    return list(batches)


@pytest.mark.parametrize("name", ["fixed canvas", "by size"])
def test_global_batches_do_not_depend_on_ranks_and_restarts(name: str) -> None:
    crop, predict = (JITTER, False) if name == "fixed canvas" else (RESIZE, True)
    expected = stream(crop, predict=predict)
    assert len(expected) == 10
    ranks = [stream(crop, step=3, rank=rank, world_size=2, predict=predict) for rank in (0, 1)]
    for batch, first, second in zip(expected[3:], *ranks, strict=True):
        assert batch.keys == first.keys + second.keys
        for field in ("boxes", "labels", "counts", "sizes"):
            assert torch.equal(getattr(batch, field), torch.cat([getattr(part, field) for part in (first, second)]))
        assert batch.masks is not None
        assert first.masks is not None
        assert second.masks is not None
        assert torch.equal(batch.masks.bits, torch.cat([first.masks.bits, second.masks.bits]))
        for row, (height, width) in enumerate(batch.sizes.tolist()):
            part, place = (first, row) if row < 4 else (second, row - 4)
            assert torch.equal(batch.images[row, :, :height, :width], part.images[place, :, :height, :width])


def test_batches_of_similar_size_have_little_padding() -> None:
    def measure(batches: list[DetectionBatch]) -> float:
        pixels = sum(int(batch.sizes.prod(dim=1).sum()) for batch in batches)
        return 1 - pixels / sum(batch.images[:, 0].numel() for batch in batches)

    assert measure(stream(RESIZE, predict=True)) < 0.3 < 0.4 < measure(stream(RESIZE))
