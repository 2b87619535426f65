"""Probe accuracy of small models that were pre-trained on the maps of `regions`, on true maps, and without maps.

`python -m benchmarks.region_maps OUT --voc DIR --photos PACK` labels the training images of two packs, and pre-trains
with equal numbers of steps and three seeds on each kind of maps; only VOC has true ones. Frozen features of 32-pixel
images are then probed: patches of VOC's validation images, and the labelled images of --photos. An interrupted
benchmark resumes.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.tiny_recipes import SEEDS, format_results, list_probe_sets, probe_backbone
from c2fmae.core.distributed import World
from c2fmae.labelling.config import LabelConfig
from c2fmae.labelling.label import label_images, make_context, open_images
from c2fmae.labelling.registry import build_labellers
from c2fmae.models.backbones import create_untrained_backbone, load_backbone
from c2fmae.pretrain import pretrain
from c2fmae.recipes.config import load_recipe

STEPS = 300
INSTANCES_ONLY = ("method.granularities=[instance, rgb]", "method.masking.name=instance")
VARIANTS = {
    "regions": ("c2fmae-tiny", INSTANCES_ONLY),
    "true instance maps": ("c2fmae-tiny", INSTANCES_ONLY),
    "true maps": ("c2fmae-tiny", ()),
    "no maps": ("mae-tiny", ()),
}
"""Recipe and settings by the maps that are used."""


def label_regions(source: str, out: Path) -> Path:
    """Write the images of a source with the instance maps of `regions`."""
    scenes, config = open_images(source), LabelConfig()
    context = make_context(config, scenes.info, World())
    label_images(scenes, build_labellers(None, "regions", context), out, config, context, workers=1)
    return out


def measure_maps(out: Path, voc: str, images: str) -> Iterator[tuple[str, list[dict[str, float]]]]:
    voc_sets = {"train": f"{voc}/train*.tar", "test": f"{voc}/val*.tar"}
    _, labelled_sets = list_probe_sets(None, images)["photos"]
    probe_sets: dict[str, tuple[Sequence[str], dict[str, Any]]] = {
        "voc": (("mIoU",), voc_sets),
        "photos": (("k-NN",), labelled_sets),
    }
    common = [f"training.steps={STEPS}", "data.cache=true", "data.held_out=null", "watching.figures=0"]
    for data, folder in (("voc", voc), ("photos", images)):
        source = f"{folder}/train*.tar"
        maps = label_regions(source, out / f"{data}-maps")
        for variant, (recipe, settings) in VARIANTS.items():
            if data == "photos" and variant.startswith("true"):
                continue
            results = []
            for seed in SEEDS:
                run = out / f"{data}-{variant.replace(' ', '-')}-{seed}"
                train = f"data.train={maps if variant == 'regions' else source}"
                pretrain(load_recipe(recipe, [*common, *settings, train, f"training.seed={seed}"]), run, resume=True)
                results.append(probe_backbone(load_backbone(run), probe_sets))
            yield f"{variant} of {data}", results
    spec = load_recipe("c2fmae-tiny").method.backbone_spec()
    yield "untrained", [probe_backbone(create_untrained_backbone(spec, seed), probe_sets) for seed in SEEDS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--voc", required=True, help="a folder with the shards of the sets train and val, with maps")
    parser.add_argument("--photos", required=True, help="a folder with train and test shards of labelled images")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, results in measure_maps(arguments.out, arguments.voc, arguments.photos):
        print(f"{name}: {format_results(results)}", flush=True)


if __name__ == "__main__":
    main()
