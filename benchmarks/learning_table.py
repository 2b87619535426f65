"""Probe accuracy of the small recipes after equal training time, each beside its own untrained encoder.

    python -m benchmarks.learning_table OUT [--only simclr] [--seeds 3]

Pre-trains each recipe on generated scenes with one thread, for as many steps as take the same time, then probes frozen
features of 32-pixel images on other generated scenes. An interrupted benchmark resumes.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from c2fmae.data import open_scenes
from c2fmae.data.cached import CachedScenes
from c2fmae.data.scenes import Scenes
from c2fmae.eval.evaluation import ModelUnderTest
from c2fmae.eval.metrics import Metric, find_metric
from c2fmae.eval.probes.config import KnnEvaluation, LinearProbeEvaluation
from c2fmae.models.backbones import Backbone, create_untrained_backbone, load_backbone
from c2fmae.pretrain import pretrain
from c2fmae.recipes.config import load_recipe

STEPS = {
    "mae": 1790,
    "c2fmae": 690,
    "simmim": 1230,
    "maskfeat": 1110,
    "simclr": 340,
    "moco-v1": 550,
    "moco-v3": 360,
    "dino": 180,
    "ibot": 160,
    "attmask": 180,
    "mst": 190,
    "cmae": 770,
    "lut": 560,
    "conmim": 640,
}
"""Steps that take 150 s of one thread, loading included, on one machine (AMD EPYC, AVX2)."""

SETS = {
    split: {"name": "generated", "options": {"size": 32, "difficulty": "plain", "length": length, "seed": seed}}
    for split, length, seed in (("train", 2048, 9001), ("test", 1024, 9002))
}
PROBES: dict[str, Callable[[ModelUnderTest], Metric | None]] = {
    "k-NN": lambda model: find_metric(KnnEvaluation(**SETS, ks=(20,)).run(model), "top1", votes="weighted", k=20),
    "linear": lambda model: find_metric(LinearProbeEvaluation(**SETS).run(model), "top1"),
}


def probe(backbone: Backbone) -> dict[str, float]:
    """Return the accuracy of each probe, in per cent."""
    with TemporaryDirectory() as features:
        model = ModelUnderTest.in_memory("tiny", Path(features), backbone=backbone)
        metrics = {name: measure(model) for name, measure in PROBES.items()}
    return {name: metric.value for name, metric in metrics.items() if metric is not None}


def train(recipe: str, seed: int, scenes: Scenes, out: Path) -> Backbone:
    """Pre-train a recipe for its number of steps, or resume that."""
    steps = [f"training.steps={STEPS[recipe]}", f"training.seed={seed}", "watching.figures=0"]
    pretrain(load_recipe(f"{recipe}-tiny", steps), out, scenes=scenes, resume=out.exists())
    return load_backbone(out)


def measure_recipes(recipes: list[str], seeds: int, out: Path) -> Iterator[str]:
    """Yield a line of the table for each recipe."""
    baselines: dict[str, list[dict[str, float]]] = {}
    scenes = CachedScenes(open_scenes("generated", size=32, difficulty="plain", length=8192))
    for recipe in recipes:
        spec = load_recipe(f"{recipe}-tiny").method.backbone_spec()
        trained = [probe(train(recipe, seed, scenes, out / f"{recipe}-{seed}")) for seed in range(seeds)]
        if spec.model_dump_json() not in baselines:
            baselines[spec.model_dump_json()] = [probe(create_untrained_backbone(spec, seed)) for seed in range(seeds)]
        untrained = baselines[spec.model_dump_json()]
        cells = [f"{summarise(trained, name)} | {summarise(untrained, name)}" for name in PROBES]
        yield f"| `{recipe}-tiny` | {STEPS[recipe]:,} | {' | '.join(cells)} |"


def summarise(results: list[dict[str, float]], name: str) -> str:
    """Return the mean over seeds, with the range."""
    values = [result[name] for result in results]
    spread = f" ({min(values):.1f}-{max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def main() -> None:
    """Parse the arguments, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", action="append", choices=STEPS, help="a recipe; repeatable")
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| recipe | steps | k-NN | untrained | linear | untrained |\n|---|---|---|---|---|---|")
    for line in measure_recipes(arguments.only or list(STEPS), arguments.seeds, arguments.out):
        print(line, flush=True)


if __name__ == "__main__":
    main()
