"""Samples of semantic segmentation per second on one core, beside the way that is written with OpenCV and torch.

A sample is a JPEG of 683×512 pixels with a PNG of class ids, from which a distorted crop of 512×512 is made. The peer
does what mmsegmentation does: it resizes the whole image, crops it, and distorts it by OpenCV's conversions, but with
torch's bilinear interpolation and float arithmetic. The distortion is also measured alone, with all four steps.
"""

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from benchmarks.bench_data import draw_smooth_noise
from benchmarks.tables import print_speeds
from c2fmae.core.seeding import derive_seed
from c2fmae.data.crops.distort import PhotometricDistortion
from c2fmae.data.crops.scaled_crop import ScaledCrop
from c2fmae.data.scenes import Scenes
from c2fmae.data.segmentation_batch import SegmentationSample
from c2fmae.data.sources import open_scenes
from c2fmae.eval.cost.speed_and_memory import time_in_turn

NUM_IMAGES, NUM_ROUNDS, SIZE, NUM_CLASSES = 24, 7, 512, 12


def write_folder(root: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("rgb", "semantic"):
        (root / name).mkdir(parents=True)
    for number in range(NUM_IMAGES):
        light, *tints = (draw_smooth_noise(rng, 512, 683, power) for power in (1.38, 2.5, 2.5, 2.5))
        image = np.stack([light // 2 + tint // 2 for tint in tints], axis=2)
        Image.fromarray(image).save(root / f"rgb/{number:04d}.jpg", quality=90)
        ids = draw_smooth_noise(rng, 512, 683, 3.0) // np.uint8(256 // NUM_CLASSES + 1)
        Image.fromarray(ids).save(root / f"semantic/{number:04d}.png")
    classes = [{"name": f"class {i}"} for i in range(NUM_CLASSES)]
    (root / "dataset.json").write_text(json.dumps({"classes": classes}), encoding="utf-8")


def convert(values: np.ndarray, alpha: float = 1, beta: float = 0) -> np.ndarray:
    changed: np.ndarray = np.clip(values.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)
    return changed


def change_hsv_with_opencv(image: np.ndarray, factor: float, rotation: int) -> np.ndarray:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 1] = convert(hsv[..., 1], alpha=factor)
    hsv[..., 0] = (hsv[..., 0].astype(int) + rotation) % 180
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))


def distort_with_opencv(image: np.ndarray, rng: np.random.Generator, probability: float = 0.5) -> np.ndarray:
    """Distort like mmsegmentation: bytes after each step, and a conversion to HSV and back for each of two."""
    if rng.random() < probability:
        image = convert(image, beta=rng.uniform(-32, 32))
    is_first = rng.random() < 0.5
    if is_first and rng.random() < probability:
        image = convert(image, alpha=rng.uniform(0.5, 1.5))
    if rng.random() < probability:
        image = change_hsv_with_opencv(image, rng.uniform(0.5, 1.5), 0)
    if rng.random() < probability:
        image = change_hsv_with_opencv(image, 1, int(rng.integers(-18, 18)))
    if not is_first and rng.random() < probability:
        image = convert(image, alpha=rng.uniform(0.5, 1.5))
    return image


def load_naively(root: Path, index: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(derive_seed(0, "view", 0, index, 0))
    image = np.asarray(Image.open(root / f"rgb/{index:04d}.jpg").convert("RGB"))
    ids = np.asarray(Image.open(root / f"semantic/{index:04d}.png"))
    scale = rng.uniform(0.5, 2.0) * SIZE / min(ids.shape)
    size = [round(side * scale) for side in ids.shape]
    pixels = F.interpolate(torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float(), size, mode="bilinear")[0]
    resized = F.interpolate(torch.from_numpy(ids.copy())[None, None].float(), size, mode="nearest")[0, 0]
    is_accepted, attempts = False, 0
    top = left = 0
    crop = resized.byte()
    while not is_accepted and attempts < 11:
        top, left = (int(rng.integers(max(side - SIZE, 0) + 1)) for side in size)
        crop = resized[top : top + SIZE, left : left + SIZE].byte()
        counts = np.unique(crop.numpy(), return_counts=True)[1]
        is_accepted, attempts = bool(counts.max() < 0.75 * counts.sum()), attempts + 1
    part = pixels[:, top : top + SIZE, left : left + SIZE].round().byte().permute(1, 2, 0).contiguous().numpy()
    if rng.random() < 0.5:
        part, crop = np.ascontiguousarray(part[:, ::-1]), crop.flip(-1)
    distorted = torch.from_numpy(distort_with_opencv(part, rng)).permute(2, 0, 1).contiguous()
    padding = (0, SIZE - crop.shape[1], 0, SIZE - crop.shape[0])
    return F.pad(distorted, padding), F.pad(crop, padding, value=255)


def crop_all(scenes: Scenes, crop: ScaledCrop) -> list[SegmentationSample]:
    return [crop(scenes[i], np.random.default_rng(derive_seed(0, "view", 0, i, 0))) for i in range(len(scenes))]


def bench_samples(root: Path) -> None:
    write_folder(root)
    scenes = open_scenes(root)
    crop = ScaledCrop(size=(SIZE, SIZE), short_side=SIZE)
    decoded = [scenes[i] for i in range(len(scenes))]
    plain = ScaledCrop(size=(SIZE, SIZE), short_side=SIZE, distort=False)
    variants: dict[str, Callable[[], object]] = {
        "OpenCV, torch, Pillow": lambda: [load_naively(root, i) for i in range(NUM_IMAGES)],
        "c2fmae": partial(crop_all, scenes, crop),
        "… decoding alone": lambda: [scenes[i] for i in range(NUM_IMAGES)],
        "… crop alone": lambda: [plain(s, np.random.default_rng(i)) for i, s in enumerate(decoded)],
    }
    seconds = time_in_turn(variants, rounds=NUM_ROUNDS)
    print_speeds(f"samples to {SIZE}", seconds, peer="OpenCV, torch, Pillow", samples=NUM_IMAGES)


def bench_distortion(root: Path) -> None:
    image: UInt8[np.ndarray, "height width 3"] = np.asarray(Image.open(root / "rgb/0000.jpg"))[:SIZE, :SIZE].copy()
    planes = torch.from_numpy(image).permute(2, 0, 1).contiguous()
    always, usual = PhotometricDistortion(probability=1), PhotometricDistortion()
    count = 16
    variants: dict[str, Callable[[], object]] = {
        "OpenCV, all steps": lambda: [
            distort_with_opencv(image, np.random.default_rng(i), probability=1) for i in range(count)
        ],
        "c2fmae, all steps": lambda: [always(planes, np.random.default_rng(i)) for i in range(count)],
        "OpenCV, as drawn": lambda: [distort_with_opencv(image, np.random.default_rng(i)) for i in range(count)],
        "c2fmae, as drawn": lambda: [usual(planes, np.random.default_rng(i)) for i in range(count)],
    }
    seconds = time_in_turn(variants, rounds=3 * NUM_ROUNDS)
    print_speeds(f"{count} distortions at {SIZE}×{SIZE}", seconds, peer="OpenCV, all steps", samples=count)


def main() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        bench_samples(Path(folder))
        bench_distortion(Path(folder))


if __name__ == "__main__":
    main()
