"""Samples of detection per second on one core, beside the way that is written with pycocotools and torch.

A sample is a JPEG of 640×480 pixels with eight masks, which is resized to a shorter side of 800 and flipped. The peer
does what torchvision's reference does: it decodes all masks at the size of the image, and resizes image and masks with
torch. The share of padding in batches is that of images with the sizes of COCO's, in three ways of making batches.
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pycocotools import mask as coco_mask  # type: ignore[import-untyped]
from torch import Tensor

from benchmarks.bench_data import draw_smooth_noise
from benchmarks.tables import print_speeds
from c2fmae.core.objects import Objects
from c2fmae.core.scene import Scene
from c2fmae.data.crops.resize import fit_sides
from c2fmae.data.crops.scale_jitter import ScaleJitter
from c2fmae.data.crops.short_side import ShortSideResize
from c2fmae.data.detection_batch import DetectionBatch, DetectionSample
from c2fmae.data.sampler import Sampler, SampleSizes, SizePredictor, sample_generator
from c2fmae.data.scenes import Scenes, WrappedScenes
from c2fmae.data.sources import open_scenes
from c2fmae.eval.cost.speed_and_memory import time_in_turn

NUM_IMAGES, NUM_ROUNDS, NUM_MASKS = 24, 7, 8
HEIGHT, WIDTH, SHORT_SIDE, MAX_SIDE = 480, 640, 800, 1333
# Height, width and approximate percentage of the most frequent sizes of COCO's images.
COCO_SIZES = (
    (480, 640, 37), (427, 640, 26), (640, 480, 13), (640, 427, 8), (375, 500, 4), (640, 640, 3), (360, 640, 3),
    (612, 612, 2), (333, 500, 2), (500, 375, 2),
)  # fmt: skip


class ScenesWithObjects(WrappedScenes):
    """Images with objects that are stored in memory, as the annotations of a COCO file are."""

    def __init__(self, source: Scenes, objects: list[Objects]) -> None:
        super().__init__(source)
        self.objects = objects

    def __getitem__(self, index: int) -> Scene:
        return replace(self.source[index], objects=self.objects[index])


def draw_outline(rng: np.random.Generator) -> bytes:
    """Return a mask of a third of the sides of the image, whose outline has 40 points as if it was drawn by hand."""
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x, y = rng.uniform((0.1, 0.1), (0.9, 0.9)) * (WIDTH, HEIGHT)
    radius = rng.uniform(0.7, 1.0, 40) * rng.uniform(0.1, 0.25)
    points = np.stack([x + radius * WIDTH * np.cos(angles), y + radius * HEIGHT * np.sin(angles)], axis=1)
    polygon = points.clip(0, (WIDTH, HEIGHT)).ravel().tolist()
    counts: bytes = coco_mask.frPyObjects([polygon], HEIGHT, WIDTH)[0]["counts"]
    return counts


def draw_objects(rng: np.random.Generator) -> Objects:
    masks = tuple(draw_outline(rng) for _ in range(NUM_MASKS))
    boxes = coco_mask.toBbox([{"size": [HEIGHT, WIDTH], "counts": counts} for counts in masks])
    boxes[:, 2:] += boxes[:, :2]
    labels = torch.arange(NUM_MASKS)
    return Objects(torch.from_numpy(boxes).float(), labels, labels < 0, torch.ones(NUM_MASKS), labels, masks)


def write_images(root: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        light, *tints = (draw_smooth_noise(rng, HEIGHT, WIDTH, power) for power in (1.38, 2.5, 2.5, 2.5))
        image = np.stack([light // 2 + tint // 2 for tint in tints], axis=2)
        Image.fromarray(image).save(root / f"{number:04d}.jpg", quality=90)


def load_naively(root: Path, scenes: ScenesWithObjects, index: int) -> tuple[Tensor, Tensor, Tensor]:
    image = np.asarray(Image.open(root / f"{index:04d}.jpg").convert("RGB"))
    objects = scenes.objects[index]
    rles = [{"size": [HEIGHT, WIDTH], "counts": counts} for counts in objects.masks or ()]
    masks = torch.from_numpy(coco_mask.decode(rles)).permute(2, 0, 1)
    size = fit_sides((HEIGHT, WIDTH), SHORT_SIDE, MAX_SIDE)
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    resized = F.interpolate(pixels, size, mode="bilinear")[0].round().byte()
    resized_masks = F.interpolate(masks[:, None].float(), size)[:, 0].byte()
    boxes = objects.boxes * torch.tensor([size[1] / WIDTH, size[0] / HEIGHT]).repeat(2)
    if sample_generator(0, 0, index, 0).random() < 0.5:
        resized, resized_masks = resized.flip(-1), resized_masks.flip(-1)
        boxes = torch.stack([size[1] - boxes[:, 2], boxes[:, 1], size[1] - boxes[:, 0], boxes[:, 3]], dim=1)
    return resized, resized_masks, boxes


def crop_all(scenes: list[Scene] | ScenesWithObjects, crop: Callable[..., DetectionSample]) -> list[DetectionSample]:
    return [crop(scenes[index], sample_generator(0, 0, index, 0)) for index in range(NUM_IMAGES)]


def bench_samples(root: Path) -> None:
    write_images(root)
    rng = np.random.default_rng(1)
    scenes = ScenesWithObjects(open_scenes(root), [draw_objects(rng) for _ in range(NUM_IMAGES)])
    decoded = [scenes[index] for index in range(NUM_IMAGES)]
    empty = [replace(scene, objects=scene.objects and scene.objects.select(torch.arange(0))) for scene in decoded]
    resize = ShortSideResize(sides=(SHORT_SIDE,), max_side=MAX_SIDE)
    multi_scale = ShortSideResize(sides=tuple(range(480, 801, 32)), max_side=MAX_SIDE, crops=True)
    peer = "torch, pycocotools, Pillow"
    variants: dict[str, Callable[[], object]] = {
        peer: lambda: [load_naively(root, scenes, index) for index in range(NUM_IMAGES)],
        "c2fmae": partial(crop_all, scenes, resize),
        "… decoding of images alone": lambda: [scenes[index] for index in range(NUM_IMAGES)],
        "… resize of images alone": partial(crop_all, empty, resize),
        "… resize with masks": partial(crop_all, decoded, resize),
        "480-800 with crops": partial(crop_all, scenes, multi_scale),
        "scale jitter to 1024": partial(crop_all, scenes, ScaleJitter(canvas=(1024, 1024))),
    }
    seconds = time_in_turn(variants, rounds=NUM_ROUNDS)
    print_speeds(f"samples to {SHORT_SIDE} with {NUM_MASKS} masks", seconds, peer=peer, samples=NUM_IMAGES)
    batch = DetectionBatch.stack(crop_all(scenes, resize))
    assert batch.masks is not None
    full = len(batch.boxes) * batch.images.shape[2] * batch.images.shape[3]
    print(f"masks of a batch take {len(batch.masks.bits) / full:.2%} of their bytes at the size of the batch")


def measure_padding(draw_size: Callable[..., tuple[int, int]], batch_size: int, way: str) -> float:
    """Return the share of padding in the batches of an epoch, padded to multiples of 32."""
    rng = np.random.default_rng(0)
    percentages = np.array([entry[2] for entry in COCO_SIZES])
    image_sizes = np.array([entry[:2] for entry in COCO_SIZES])[rng.choice(len(COCO_SIZES), 8192, p=percentages / 100)]
    predictor = SizePredictor(draw_size, image_sizes, seed=0)
    sampler = Sampler(num_samples=len(image_sizes), batch_size=batch_size)
    if way == "by size":
        sampler = replace(sampler, predict_sizes=predictor)
    draws = sampler.epoch_draws(0)
    if way == "by orientation":
        draws = draws[np.argsort(np.diff(image_sizes[draws[:, 0]])[:, 0] >= 0, kind="stable")]
    sizes: SampleSizes = predictor(0, draws).reshape(-1, batch_size, 2)
    padded = -(-sizes.max(axis=1) // 32) * 32
    return float(1 - sizes.prod(axis=2).sum() / (batch_size * padded.prod(axis=1).sum()))


def print_padding() -> None:
    ways = ("in random order", "by orientation", "by size")
    print(f"\npadding in batches{'':24s}" + "".join(f"{way:>18s}" for way in ways))
    for crops in (False, True):
        resize = ShortSideResize(sides=tuple(range(480, 801, 32)), max_side=MAX_SIDE, crops=crops)
        for batch_size in (2, 16):
            shares = [measure_padding(resize.draw_size, batch_size, way) for way in ways]
            name = f"480-800{' with crops' if crops else ''}, {batch_size} images"
            print(f"{name:42s}" + "".join(f"{share:18.1%}" for share in shares))


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        bench_samples(Path(folder))
    print_padding()


if __name__ == "__main__":
    main()
