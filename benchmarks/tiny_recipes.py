"""What do three small recipes learn in the same time? `python -m benchmarks.tiny_recipes OUT --voc DIR --photos PACK`.

Each recipe is pre-trained on generated scenes, and on Pascal VOC where that is given, for as many steps as take the
same time on one quiet core, from three seeds; an encoder that was not trained stands beside them. Frozen features of
photos of 32 pixels are then probed: on new generated scenes, patches of VOC's validation images, and photos of other
classes.
Interrupted, it goes on where it was.
"""

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from c2fmae.core.metric_rows import read_rows
from c2fmae.core.run_dir import RunDir
from c2fmae.data import CentralView, Scenes, open_scenes
from c2fmae.data.combine import SubsetScenes
from c2fmae.eval.probes import encode_scenes, make_image_encoder, run_probes
from c2fmae.loading import load_run
from c2fmae.methods import MaskedAutoencoding, build_method
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


def select_evenly(scenes: Scenes, count: int) -> Scenes:
    """Some scenes of a source, evenly spread."""
    step = max(len(scenes) // count, 1)
    return SubsetScenes(scenes, torch.arange(0, step * min(count, len(scenes)), step).numpy())


def open_probe_sets(voc: str | None, images: str | None) -> dict[str, tuple[Scenes, Scenes]]:
    fresh: dict[str, Any] = {"size": 32, "difficulty": "plain"}
    found = {
        "generated": (
            open_scenes("generated", length=2048, seed=9001, **fresh),
            open_scenes("generated", length=1024, seed=9002, **fresh),
        )
    }
    if voc:
        found["voc"] = (open_scenes(f"{voc}/train"), open_scenes(f"{voc}/val"))
    if images:
        sets = [open_scenes(f"{images}/{part}*.tar", granularities=("rgb",)) for part in ("train", "test")]
        found["photos"] = (select_evenly(sets[0], 5000), select_evenly(sets[1], 2000))
    return found


def probe_method(method: MaskedAutoencoding, probe_sets: dict[str, tuple[Scenes, Scenes]]) -> dict[str, float]:
    found: dict[str, float | None] = {}
    for name, pair in probe_sets.items():
        view, encode = CentralView(**method.view_options), make_image_encoder(method)
        train, test = (encode_scenes(encode, scenes, view) for scenes in pair)
        result = run_probes(train, test)
        found |= {f"{name} k-NN": result.knn, f"{name} linear": result.linear}
        found[f"{name} mIoU"] = result.dense.miou if result.dense else None
    return {key: 100 * value for key, value in found.items() if value is not None}


def measure_recipes(out: Path, voc: str | None, images: str | None) -> Iterator[tuple[str, list[dict[str, float]]]]:
    on = open_probe_sets(voc, images)
    for data in ("generated", *(["voc"] if voc else [])):
        for recipe in STEPS:
            found = []
            for seed in SEEDS:
                folder = out / f"{recipe}-{data}-{seed}"
                pretrain(load_recipe(f"{recipe}-tiny", run_overrides(recipe, data, seed, voc)), folder, resume=True)
                last = [row for row in read_rows(RunDir(folder).metrics) if "held_out/loss" in row][-1]
                held_out = {key: value for key, value in last.items() if key.startswith("held_out/")}
                found.append(probe_method(load_run(folder).method, on) | held_out)
            yield f"{recipe} on {data}", found
    yield "untrained", [probe_method(build_method(load_recipe("c2fmae-tiny").method, seed=seed), on) for seed in SEEDS]


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
