"""Samples per second of a data worker with several views: `python -m benchmarks.bench_views [DATA]`.

Its peers are torchvision's transforms, on Pillow images, as the papers' code uses them, and on tensors. All use one
thread, and times are those of the processor.
At 224 pixels every sample is decoded from a JPEG: of DATA, a folder with images in `rgb`, or else of generated noise of
500×375 pixels. At 64 pixels scenes are generated once, and are in memory.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tv

from benchmarks.bench_data import write_tree
from benchmarks.tables import print_speeds
from c2fmae.core.scene import Scene
from c2fmae.core.seeding import derive_seed
from c2fmae.core.view_options import ColourOptions, ViewOptions
from c2fmae.data.generated import GeneratedScenes
from c2fmae.data.multi_view import MultiView
from c2fmae.data.scenes import Scenes
from c2fmae.data.sources import open_scenes
from c2fmae.data.transforms import RandomView, Transform
from c2fmae.eval.cost.speed_and_memory import time_in_turn

NUM_IMAGES, NUM_ROUNDS = 48, 9
JITTER = (0.4, 0.4, 0.2, 0.1)
BLURRED = ColourOptions(jitter=JITTER, grey_chance=0.2, blur_chance=1.0)
SOLARISED = ColourOptions(jitter=JITTER, grey_chance=0.2, blur_chance=0.1, solarise_chance=0.2)
LOCAL = ColourOptions(jitter=JITTER, grey_chance=0.2, blur_chance=0.5)
GLOBAL_SCALE, LOCAL_SCALE = (0.25, 1.0), (0.05, 0.25)
ONE, TWO, MULTI_CROP = "one view", "two views with colours", "2 + 8 views with colours"

Peer = Callable[[Any], list[torch.Tensor]]


def build_views(side: int, local_side: int) -> dict[str, Transform]:
    """Return the transforms of MAE, MoCo v3 and DINO."""
    main = RandomView(size=(side, side), scale=GLOBAL_SCALE)
    second = ViewOptions(colour=SOLARISED)
    local = ViewOptions(size=(local_side, local_side), scale=LOCAL_SCALE, count=8, colour=LOCAL)
    return {
        ONE: main,
        TWO: MultiView(main=main, main_colour=BLURRED, others={"second": second}),
        MULTI_CROP: MultiView(main=main, main_colour=BLURRED, others={"second": second, "local": local}),
    }


def build_peers(side: int, local_side: int) -> dict[str, Peer]:
    """Return torchvision's transforms of the same views."""
    plain = build_peer(side, GLOBAL_SCALE, None)
    two = [build_peer(side, GLOBAL_SCALE, colour) for colour in (BLURRED, SOLARISED)]
    local = build_peer(local_side, LOCAL_SCALE, LOCAL)

    def apply(transforms: Sequence[Callable[[Any], Any]], image: Any) -> list[torch.Tensor]:
        views = [transform(image) for transform in transforms]
        return [view if isinstance(view, torch.Tensor) else tv.pil_to_tensor(view) for view in views]

    return {ONE: partial(apply, [plain]), TWO: partial(apply, two), MULTI_CROP: partial(apply, [*two, *[local] * 8])}


def build_peer(side: int, scale: tuple[float, float], colour: ColourOptions | None) -> Callable[[Any], Any]:
    crop = v2.RandomResizedCrop(side, scale, interpolation=InterpolationMode.BICUBIC, antialias=True)
    transforms: list[Any] = [crop, v2.RandomHorizontalFlip()]
    if colour is not None:
        transforms += [
            v2.RandomApply([v2.ColorJitter(*colour.jitter)], colour.jitter_chance),
            v2.RandomGrayscale(colour.grey_chance),
            v2.RandomApply([v2.GaussianBlur(side // 10 | 1, colour.blur_sigma)], colour.blur_chance),
            v2.RandomSolarize(128, colour.solarise_chance),
        ]
    composed: Callable[[Any], Any] = v2.Compose(transforms)
    return composed


def compare(
    title: str,
    scenes: Scenes | Sequence[Scene],
    load_pil: Callable[[int], Image.Image],
    *,
    side: int,
    local_side: int,
) -> None:
    """Print a table for each number of views."""
    indices = range(min(NUM_IMAGES, len(scenes)))

    def run_ours(view: Transform) -> None:
        for index in indices:
            view(scenes[index], np.random.default_rng(derive_seed(0, "view", 0, index, 0)))

    def run_pil(peer: Peer) -> None:
        for index in indices:
            peer(load_pil(index))

    def run_tensor(peer: Peer) -> None:
        for index in indices:
            peer(scenes[index].maps["rgb"])

    views, peers = build_views(side, local_side), build_peers(side, local_side)
    for name, view in views.items():
        variants = {
            "c2fmae": partial(run_ours, view),
            "torchvision, Pillow images": partial(run_pil, peers[name]),
            "torchvision, tensors": partial(run_tensor, peers[name]),
        }
        seconds = time_in_turn(variants, rounds=NUM_ROUNDS, clock=time.process_time)
        print_speeds(f"{title}: {name}", seconds, peer="torchvision, Pillow images", samples=len(indices))


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        if sys.argv[1:]:
            tree = Path(sys.argv[1])
        else:
            write_tree(tree)
        paths = sorted((tree / "rgb").iterdir())
        scenes = open_scenes(tree, granularities=("rgb",))
        compare("JPEG to 224", scenes, lambda i: Image.open(paths[i]).convert("RGB"), side=224, local_side=96)
    scenes_with_maps = GeneratedScenes(size=96, length=NUM_IMAGES)
    generated = [Scene(str(index), {"rgb": scenes_with_maps[index].maps["rgb"]}) for index in range(NUM_IMAGES)]
    images = [tv.to_pil_image(scene.maps["rgb"]) for scene in generated]
    compare("generated to 64", generated, images.__getitem__, side=64, local_side=32)


if __name__ == "__main__":
    main()
