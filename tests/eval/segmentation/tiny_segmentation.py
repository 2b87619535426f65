"""Tiny sets of images with two classes each, and configs of short trainings of segmenters."""

from collections.abc import Sequence
from pathlib import Path

import torch

from c2fmae.core.scene import Scene
from c2fmae.core.specs import BackboneSpec, EncoderConfig
from c2fmae.eval.segmentation.config import SegmentConfig
from tests.eval.classification.tiny_finetuning import write_pretrained_checkpoint
from tests.eval.tiny_backbones import write_dataset_json, write_scenes

SPEC = BackboneSpec(encoder=EncoderConfig(name="test_vit", patch_size=8, depth=2), image_size=(16, 16))
CLASSES = ("one", "two", "three")
COLOURS = torch.tensor([[220, 30, 30], [30, 220, 30], [30, 30, 220]], dtype=torch.int64)

QUICK_OVERRIDES = (
    "depths=[1, 2]",
    "head.options={channels: 16, pool_scales: [1, 2], rescales: [2, 1], dropout: 0}",
    "head.options.auxiliary={channels: 8, dropout: 0}",
    "norm=group",
    "drop_path=0",
    "training.epochs=null",
    "training.steps=4",
    "training.warmup_steps=1",
    "training.batch_size=8",
    "training.lr=1e-3",
    "training.precision=fp32",
    "data.image_size=[16, 16]",
    "data.short_side=16",
    "data.workers=0",
    "testing.mode=whole",
    "watching.held_out_every=2",
)


def draw_halves(count: int, *, seed: int = 0, size: tuple[int, int] = (16, 24)) -> list[Scene]:
    """Return images whose left and right part have the colours of two classes; a border between them has no label."""
    generator = torch.Generator().manual_seed(seed)
    scenes = []
    for index in range(count):
        left, right = torch.randperm(3, generator=generator)[:2].tolist()
        border = int(torch.randint(6, size[1] - 6, (), generator=generator))
        ids = torch.full(size, left, dtype=torch.uint8)
        ids[:, border:] = right
        noise = torch.randint(-25, 26, (3, *size), generator=generator)
        image = (COLOURS[ids.long()].permute(2, 0, 1) + noise).clamp(0, 255).to(torch.uint8)
        ids[:, border - 1 : border + 1] = 255
        scenes.append(Scene(f"{seed}-{index:03d}", {"rgb": image, "semantic": ids}))
    return scenes


def write_halves(root: Path, *, train: int = 16, test: int = 6, classes: Sequence[str] = CLASSES) -> Path:
    """Write a training and a test set."""
    for split, count, seed in (("train", train, 0), ("test", test, 1)):
        write_dataset_json(write_scenes(root / split, draw_halves(count, seed=seed)), classes)
    return root


def write_source(root: Path) -> Path:
    """Write a pre-training checkpoint of random weights."""
    return write_pretrained_checkpoint(root, SPEC)


def make_quick_config(source: Path | str, data: Path, *settings: str) -> SegmentConfig:
    """Return the config of a training of a few steps, with these overrides."""
    overrides = [f"data.train={data / 'train'}", f"data.test={data / 'test'}", *QUICK_OVERRIDES, *settings]
    return SegmentConfig.from_dict({"init": str(source)}, overrides)
