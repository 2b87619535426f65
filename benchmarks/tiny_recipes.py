"""What do three small recipes learn in the same time? `python -m benchmarks.tiny_recipes OUT --voc DIR --photos PACK`.

Each recipe is pre-trained on generated scenes, and on Pascal VOC where that is given, for as many steps as take the
same time on one quiet core, from three seeds; an encoder that was not trained stands beside them. Frozen features of
photos of 32 pixels are then probed: on new generated scenes, patches of VOC's validation images, and photos of other
classes.
Interrupted, it goes on where it was.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from c2fmae.core.metric_rows import read_rows
from c2fmae.core.run_dir import RunDir
from c2fmae.eval.evaluation import ModelUnderTest
from c2fmae.eval.metrics import Metric, find_metric
from c2fmae.eval.probes.config import DenseProbeEvaluation, KnnEvaluation, LinearProbeEvaluation
from c2fmae.models.backbones import Backbone, create_untrained_backbone, load_backbone
from c2fmae.pretrain import pretrain
from c2fmae.recipes.config import load_recipe

STEPS = {"c2fmae": 900, "multimae": 775, "mae": 2234}
"""In proportion to what their steps take on one core: 114, 133 and 46 ms (minima of 60 alternating rounds)."""

SEEDS = (0, 1, 2)


def run_overrides(method: str, data: str, seed: int, voc: str | None) -> list[str]:
    steps = [f"training.steps={STEPS[method]}", f"training.seed={seed}", "watching.figures=0"]
    if data == "voc":
        return [*steps, f"data.train={voc}/train", f"data.held_out={voc}/val"]
    return [*steps, f"data.train.options={{size: 32, difficulty: plain, length: 8192, seed: {1000 + seed}}}"]


def list_probe_sets(voc: str | None, images: str | None) -> dict[str, tuple[Sequence[str], dict[str, Any]]]:
    """By name: the probes that a pair of sets has the truth for, and where it is."""
    fresh: dict[str, Any] = {"size": 32, "difficulty": "plain"}
    generated = {
        split: {"name": "generated", "options": {**fresh, "length": length, "seed": seed}}
        for split, length, seed in (("train", 2048, 9001), ("test", 1024, 9002))
    }
    found: dict[str, tuple[Sequence[str], dict[str, Any]]] = {"generated": (tuple(PROBES), generated)}
    if voc:
        found["voc"] = (("mIoU",), {"train": f"{voc}/train", "test": f"{voc}/val"})
    if images:
        found["photos"] = (("k-NN", "linear"), {"train": f"{images}/train*.tar", "test": f"{images}/test*.tar"})
    return found


PROBES: dict[str, Callable[[dict[str, Any], ModelUnderTest], Metric | None]] = {
    "k-NN": lambda sets, model: find_metric(KnnEvaluation(**sets, ks=(20,)).run(model), "top1", votes="weighted", k=20),
    "linear": lambda sets, model: find_metric(LinearProbeEvaluation(**sets).run(model), "top1"),
    "mIoU": lambda sets, model: find_metric(DenseProbeEvaluation(**sets).run(model), "mean_iou"),
}


def probe_backbone(backbone: Backbone, probe_sets: dict[str, tuple[Sequence[str], dict[str, Any]]]) -> dict[str, float]:
    with TemporaryDirectory() as features:
        model = ModelUnderTest.in_memory("tiny", Path(features), backbone=backbone)
        metrics = {
            f"{name} {probe}": PROBES[probe](sets, model)
            for name, (probes, sets) in probe_sets.items()
            for probe in probes
        }
    return {name: metric.value for name, metric in metrics.items() if metric is not None}


def measure_recipes(out: Path, voc: str | None, images: str | None) -> Iterator[tuple[str, list[dict[str, float]]]]:
    probe_sets = list_probe_sets(voc, images)
    for data in ("generated", *(["voc"] if voc else [])):
        for recipe in STEPS:
            found = []
            for seed in SEEDS:
                folder = out / f"{recipe}-{data}-{seed}"
                pretrain(load_recipe(f"{recipe}-tiny", run_overrides(recipe, data, seed, voc)), folder, resume=True)
                last = [row for row in read_rows(RunDir(folder).metrics) if "held_out/loss" in row][-1]
                held_out = {key: value for key, value in last.items() if key.startswith("held_out/")}
                found.append(probe_backbone(load_backbone(folder), probe_sets) | held_out)
            yield f"{recipe} on {data}", found
    spec = load_recipe("c2fmae-tiny").method.backbone_spec()
    yield "untrained", [probe_backbone(create_untrained_backbone(spec, seed), probe_sets) for seed in SEEDS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--voc", help="a folder with the packs train and val, photos of 40 pixels or so")
    parser.add_argument("--photos", help="a pack with train and test shards of labelled photos")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, found in measure_recipes(arguments.out, arguments.voc, arguments.photos):
        parts = []
        for key in found[0]:
            values = [each[key] for each in found]
            parts.append(f"{key} {statistics.mean(values):.4g} ({min(values):.4g}-{max(values):.4g})")
        print(f"{name}: " + ", ".join(parts), flush=True)


if __name__ == "__main__":
    main()
