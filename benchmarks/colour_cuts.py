"""Cuts of colours, beside regions and a box in the middle: `python -m benchmarks.colour_cuts 'voc/val-*.tar'`.

The features of a patch are the mean Lab colour and the position of its pixels. A backbone whose features make worse
objects than these is of no use to `cuts`.
"""

import sys
from collections.abc import Callable

import skimage.color
import torch
from torch import Tensor

from c2fmae.core.crop_box import CropBox
from c2fmae.core.scene import Scene
from c2fmae.data.geometry import resized_crop_image
from c2fmae.data.sources import open_scenes
from c2fmae.eval.maps.baselines import make_middle_box_map
from c2fmae.eval.maps.objects import count_objects, totals_to_object_scores
from c2fmae.eval.maps.overlaps import count_overlaps
from c2fmae.labelling.context import LabellerContext
from c2fmae.labelling.cuts import sample_levels
from c2fmae.labelling.normalised_cuts import find_objects
from c2fmae.labelling.protocol import LabelInput
from c2fmae.labelling.registry import build_labellers

GRID = 28


def compute_colours(image: Tensor) -> Tensor:
    """Return standardised Lab colours and positions of `GRID` × `GRID` patches."""
    resized = resized_crop_image(image, CropBox(0, 0, *image.shape[1:]), (GRID, GRID))
    lab = torch.from_numpy(skimage.color.rgb2lab(resized.permute(1, 2, 0).numpy())).permute(2, 0, 1).float()
    axis = torch.linspace(-1, 1, GRID)
    positions = torch.stack([axis[:, None].expand(GRID, GRID), axis.expand(GRID, GRID)])
    features = torch.cat([lab, positions])
    return features / features.flatten(1).std(dim=1).clamp(min=1e-6)[:, None, None]


def make_cuts(scene: Scene) -> Tensor:
    image = scene.maps["rgb"]
    height, width = image.shape[1:]
    ids = torch.zeros(height, width, dtype=torch.uint8)
    pixels = (torch.arange(height), torch.arange(width))
    for number, each in reversed(list(enumerate(find_objects(compute_colours(image)), start=1))):
        ids[sample_levels(each, (height, width), pixels) > 0] = number
    return ids


def main() -> None:
    torch.set_num_threads(1)
    scenes = open_scenes(sys.argv[1])
    (regions,) = build_labellers(None, "regions", LabellerContext())
    methods: dict[str, Callable[[Scene], Tensor]] = {
        "middle box": lambda scene: make_middle_box_map(*scene.maps["instance"].shape),
        "cuts of colours": make_cuts,
        "regions": lambda scene: regions.label([LabelInput(scene.key, scene.maps["rgb"])], 1)[0].maps["instance"],
    }
    totals: dict[str, Tensor] = {name: torch.zeros(8, dtype=torch.float64) for name in methods}
    for index in range(len(scenes)):
        scene = scenes[index]
        for name, method in methods.items():
            totals[name] += count_objects(count_overlaps(scene.maps["instance"], method(scene)))
    for name, total in totals.items():
        scores = totals_to_object_scores(total)
        print(
            f"{name}: average best overlap {100 * float(scores['average_best_overlap']):.1f} %, recall at ½"
            f" {100 * float(scores['recall_50']):.1f} %, {float(scores['predicted_objects_per_image']):.1f} objects"
        )


if __name__ == "__main__":
    main()
