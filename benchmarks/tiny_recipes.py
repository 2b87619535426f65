"""Probe accuracy of three small recipes after equal training time.

`python -m benchmarks.tiny_recipes OUT --voc DIR --photos PACK` pre-trains each recipe with three seeds on generated
scenes and, with --voc, on Pascal VOC. The numbers of steps take the same time on one idle core. Frozen features of
32-pixel images are then probed, with an untrained encoder as a baseline: on new generated scenes, on patches of VOC's
validation images, and on the labelled images of --photos. An interrupted benchmark resumes.
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
"""Number of steps of equal total time: a step takes 114, 133 and 46 ms on one core (minima of 60 rounds in turn)."""

SEEDS = (0, 1, 2)


def run_overrides(method: str, data: str, seed: int, voc: str | None) -> list[str]:
    steps = [f"training.steps={STEPS[method]}", f"training.seed={seed}", "watching.figures=0"]
    if data == "voc":
        return [*steps, f"data.train={voc}/train", f"data.held_out={voc}/val"]
    return [*steps, f"data.train.options={{size: 32, difficulty: plain, length: 8192, seed: {1000 + seed}}}"]


def list_probe_sets(voc: str | None, images: str | None) -> dict[str, tuple[Sequence[str], dict[str, Any]]]:
    """Return, by name, the probes for which a pair of sets has labels, and the options of the pair."""
    generated_options: dict[str, Any] = {"size": 32, "difficulty": "plain"}
    generated = {
        split: {"name": "generated", "options": {**generated_options, "length": length, "seed": seed}}
        for split, length, seed in (("train", 2048, 9001), ("test", 1024, 9002))
    }
    probe_sets: dict[str, tuple[Sequence[str], dict[str, Any]]] = {"generated": (tuple(PROBES), generated)}
    if voc:
        probe_sets["voc"] = (("mIoU",), {"train": f"{voc}/train", "test": f"{voc}/val"})
    if images:
        probe_sets["photos"] = (("k-NN", "linear"), {"train": f"{images}/train*.tar", "test": f"{images}/test*.tar"})
    return probe_sets


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


def format_results(results: Sequence[dict[str, float]]) -> str:
    """Return the mean and the range over seeds of each number."""
    parts = []
    for key in results[0]:
        values = [result[key] for result in results]
        parts.append(f"{key} {statistics.mean(values):.4g} ({min(values):.4g}-{max(values):.4g})")
    return ", ".join(parts)


def measure_recipes(out: Path, voc: str | None, images: str | None) -> Iterator[tuple[str, list[dict[str, float]]]]:
    probe_sets = list_probe_sets(voc, images)
    for data in ("generated", *(["voc"] if voc else [])):
        for recipe in STEPS:
            results = []
            for seed in SEEDS:
                folder = out / f"{recipe}-{data}-{seed}"
                pretrain(load_recipe(f"{recipe}-tiny", run_overrides(recipe, data, seed, voc)), folder, resume=True)
                last = [row for row in read_rows(RunDir(folder).metrics) if "held_out/loss" in row][-1]
                held_out = {key: value for key, value in last.items() if key.startswith("held_out/")}
                results.append(probe_backbone(load_backbone(folder), probe_sets) | held_out)
            yield f"{recipe} on {data}", results
    spec = load_recipe("c2fmae-tiny").method.backbone_spec()
    yield "untrained", [probe_backbone(create_untrained_backbone(spec, seed), probe_sets) for seed in SEEDS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--voc", help="a folder with the packs train and val, of images of about 40 pixels")
    parser.add_argument("--photos", help="a pack with train and test shards of labelled images")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, results in measure_recipes(arguments.out, arguments.voc, arguments.photos):
        print(f"{name}: {format_results(results)}", flush=True)


if __name__ == "__main__":
    main()
