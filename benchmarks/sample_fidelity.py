"""How true samples are: photos to Pillow's bicubic, labels stored at a stride to a nearest cut of the full map.

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
    """Peak signal to noise of random cuts of a photo, beside Pillow's."""
    photo, psnr = scene.maps["rgb"], []
    for _ in range(NUM_CROPS):
        box = random_crop_box(photo.shape[-2], photo.shape[-1], rng.random((10, 4)))
        part = Image.fromarray(photo.permute(1, 2, 0).numpy()).crop(
            (box.left, box.top, box.left + box.width, box.top + box.height)
        )
        pillow = np.asarray(part.resize(SIZE, Image.Resampling.BICUBIC), np.float64)
        error = np.square(resized_crop_image(photo, box, SIZE).permute(1, 2, 0).numpy() - pillow).mean()
        psnr.append(10 * np.log10(255**2 / max(error, 1e-9)))
    return psnr


def compute_id_agreement(scene: Scene, stride: int, rng: np.random.Generator) -> list[float]:
    """The share of cells whose id, read from a map at a stride, is that of the full map."""
    found = []
    for name, ids in scene.maps.items():
        if GRANULARITIES.get(name).kind != "ids":
            continue
        stored = subsample_ids(ids, stride)
        for _ in range(NUM_CROPS):
            box = random_crop_box(ids.shape[0], ids.shape[1], rng.random((10, 4)))
            same = resized_crop_ids(stored, box, CELLS, stride=stride) == resized_crop_ids(ids, box, CELLS)
            found.append(float(same.double().mean()))
    return found


def main() -> None:
    torch.set_num_threads(1)
    for source in sys.argv[1:]:
        scenes, rng = open_scenes(source), np.random.default_rng(0)
        photos, labels = list[float](), {stride: list[float]() for stride in (1, 2, 4)}
        for index in range(min(len(scenes), 200)):
            scene = scenes[index]
            photos += compute_psnr(scene, rng)
            for stride, shares in labels.items():
                shares += compute_id_agreement(scene, stride, rng)
        print(f"{source}: photos {np.mean(photos):.1f} dB on average, {min(photos):.1f} at least", end="")
        agreement_texts = [f"stride {stride} {np.mean(shares):.2%}" for stride, shares in labels.items() if shares]
        print(f"; cells as in the full map: {', '.join(agreement_texts)}" if agreement_texts else "")


if __name__ == "__main__":
    main()
