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

from c2fmae.core.run_dir import RunFolder, read_rows
from c2fmae.data import CentralView, Scenes, open_scenes
from c2fmae.data.combine import SelectedScenes
from c2fmae.eval.probes import extract, photo_encoder, probe
from c2fmae.loading import load_run
from c2fmae.methods import MaskedAutoencoding, build_method
from c2fmae.pretrain import pretrain
from c2fmae.recipes.config import read_recipe

STEPS = {"c2fmae": 900, "multimae": 775, "mae": 2234}
"""In proportion to what their steps take on one core: 114, 133 and 46 ms (minima of 60 alternating rounds)."""

SEEDS = (0, 1, 2)


def settings(method: str, data: str, seed: int, voc: str | None) -> list[str]:
    steps = [f"training.steps={STEPS[method]}", f"training.seed={seed}", "watching.pictures=0"]
    if data == "voc":
        return [*steps, f"data.train={voc}/train", "data.options={}", f"data.held_out={voc}/val",
                "data.held_out_options={}"]  # fmt: skip
    return [*steps, f"data.options={{size: 32, difficulty: plain, length: 8192, seed: {1000 + seed}}}"]


def some(scenes: Scenes, count: int) -> Scenes:
    """Some scenes of a source, evenly spread."""
    step = max(len(scenes) // count, 1)
    return SelectedScenes(scenes, torch.arange(0, step * min(count, len(scenes)), step).numpy())


def targets(voc: str | None, photos: str | None) -> dict[str, tuple[Scenes, Scenes]]:
    fresh: dict[str, Any] = {"size": 32, "difficulty": "plain"}
    found = {
        "generated": (
            open_scenes("generated", length=2048, seed=9001, **fresh),
            open_scenes("generated", length=1024, seed=9002, **fresh),
        )
    }
    if voc:
        found["voc"] = (open_scenes(f"{voc}/train"), open_scenes(f"{voc}/val"))
    if photos:
        sets = [open_scenes(f"{photos}/{part}*.tar", granularities=("rgb",)) for part in ("train", "test")]
        found["photos"] = (some(sets[0], 5000), some(sets[1], 2000))
    return found


def scores(method: MaskedAutoencoding, on: dict[str, tuple[Scenes, Scenes]]) -> dict[str, float]:
    found: dict[str, float | None] = {}
    for name, pair in on.items():
        view, encode = CentralView(**method.cut), photo_encoder(method)
        train, test = (extract(encode, scenes, view) for scenes in pair)
        result = probe(train, test)
        found |= {f"{name} k-NN": result.knn, f"{name} linear": result.linear}
        found[f"{name} mIoU"] = result.dense.miou if result.dense else None
    return {key: 100 * value for key, value in found.items() if value is not None}


def rows(out: Path, voc: str | None, photos: str | None) -> Iterator[tuple[str, list[dict[str, float]]]]:
    on = targets(voc, photos)
    for data in ("generated", *(["voc"] if voc else [])):
        for recipe in STEPS:
            found = []
            for seed in SEEDS:
                folder = out / f"{recipe}-{data}-{seed}"
                pretrain(read_recipe(f"{recipe}-tiny", settings(recipe, data, seed, voc)), folder, resume=True)
                last = [row for row in read_rows(RunFolder(folder).metrics) if "held_out/loss" in row][-1]
                held_out = {key: value for key, value in last.items() if key.startswith("held_out/")}
                found.append(scores(load_run(folder).method, on) | held_out)
            yield f"{recipe} on {data}", found
    yield "untrained", [scores(build_method(read_recipe("c2fmae-tiny").method, seed=seed), on) for seed in SEEDS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--voc", help="a folder with the packs train and val, photos of 40 pixels or so")
    parser.add_argument("--photos", help="a pack with train and test shards of labelled photos")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, found in rows(arguments.out, arguments.voc, arguments.photos):
        parts = []
        for key in found[0]:
            values = [each[key] for each in found]
            parts.append(f"{key} {statistics.mean(values):.4g} ({min(values):.4g}-{max(values):.4g})")
        print(f"{name}: " + ", ".join(parts), flush=True)


if __name__ == "__main__":
    main()
