"""Fidelity of samples: images against Pillow's bicubic, labels at a stride against crops of the full-size map.

python -m benchmarks.sample_fidelity SOURCE [SOURCE …]
"""

import sys

import numpy as np
import torch
from PIL import Image

from c2fmae.core.granularity import GRANULARITIES
from c2fmae.core.scene import Scene
from c2fmae.data.geometry import resized_crop_ids, resized_crop_image, subsample_ids
from c2fmae.data.sources import open_scenes
from c2fmae.data.transforms import random_crop_box

NUM_CROPS, SIZE, CELLS = 4, (224, 224), (56, 56)


def compute_psnr(scene: Scene, rng: np.random.Generator) -> list[float]:
    """Return the peak signal-to-noise ratio, in dB, of random crops of an image against Pillow."""
    image, psnr = scene.maps["rgb"], []
    for _ in range(NUM_CROPS):
        box = random_crop_box(image.shape[-2], image.shape[-1], rng.random((10, 4)))
        part = Image.fromarray(image.permute(1, 2, 0).numpy()).crop(
            (box.left, box.top, box.left + box.width, box.top + box.height)
        )
        pillow = np.asarray(part.resize(SIZE, Image.Resampling.BICUBIC), np.float64)
        error = np.square(resized_crop_image(image, box, SIZE).permute(1, 2, 0).numpy() - pillow).mean()
        psnr.append(10 * np.log10(255**2 / max(error, 1e-9)))
    return psnr


def compute_id_agreement(scene: Scene, stride: int, rng: np.random.Generator) -> list[float]:
    """Return the fraction of cells whose id, read from a map at a stride, equals that of the full-size map."""
    fractions = []
    for name, ids in scene.maps.items():
        if GRANULARITIES.get(name).kind != "ids":
            continue
        stored = subsample_ids(ids, stride)
        for _ in range(NUM_CROPS):
            box = random_crop_box(ids.shape[0], ids.shape[1], rng.random((10, 4)))
            same = resized_crop_ids(stored, box, CELLS, stride=stride) == resized_crop_ids(ids, box, CELLS)
            fractions.append(float(same.double().mean()))
    return fractions


def main() -> None:
    torch.set_num_threads(1)
    for source in sys.argv[1:]:
        scenes, rng = open_scenes(source), np.random.default_rng(0)
        psnr, agreement = list[float](), {stride: list[float]() for stride in (1, 2, 4)}
        for index in range(min(len(scenes), 200)):
            scene = scenes[index]
            psnr += compute_psnr(scene, rng)
            for stride, fractions in agreement.items():
                fractions += compute_id_agreement(scene, stride, rng)
        print(f"{source}: images {np.mean(psnr):.1f} dB on average, minimum {min(psnr):.1f}", end="")
        agreement_texts = [f"stride {stride} {np.mean(values):.2%}" for stride, values in agreement.items() if values]
        print(f"; cells equal to the full-size map: {', '.join(agreement_texts)}" if agreement_texts else "")


if __name__ == "__main__":
    main()
