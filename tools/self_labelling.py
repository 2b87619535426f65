"""From images to maps to an encoder to better maps? Two rounds of self-labelling, and a comparison with true maps.

    python tools/self_labelling.py [IMAGES] [--truth SCENES] [--out DIR] [--steps N]

1. Pre-train `mae-tiny` on the images.
2. Label them with its features: `cuts` for instance maps, `clusters` for semantic maps.
3. Pre-train `c2fmae-tiny` on these maps.
4. Label the images with its features.

The images of SCENES, which have true maps, are labelled by both encoders, too. The scores of both are printed, beside
baselines that need no training. Run it again to continue after an interruption. With fewer steps than the default it
takes minutes on a CPU; do not expect better maps at this size.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

SIDE, PATCH = 64, 8  # pixels of the images of pre-training; `grid_size` images in labelling are larger
GRID_SIZE, NUM_CLUSTERS = 16, 32

SCORES = {
    "average best overlap of objects": ("average_best_overlap", {"region_kind": "objects"}),
    "mIoU, clusters assigned one to one": ("mean_iou", {"clusters": "one to one"}),
    "mIoU, clusters assigned by majority": ("mean_iou", {"clusters": "by majority"}),
}
BASELINES = ("middle box", "regions")


class Score(NamedTuple):
    """A score in percent, and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} ({self.low:.1f}-{self.high:.1f})"


def list_commands(images: str, truth: str, out: Path, steps: int) -> Iterator[list[str]]:
    """Yield the arguments of each command of `c2fmae`, in order."""
    masks = ["--set", f"method.num_visible={(SIDE // PATCH) ** 2}"]  # a third of the patches of three maps
    for number, (recipe, data, settings) in enumerate(
        [("mae-tiny", images, []), ("c2fmae-tiny", str(out / "maps-1"), masks)], start=1
    ):
        run = out / recipe
        size = ["--set", f"method.image_size=[{SIDE}, {SIDE}]"]
        yield [
            "pretrain",
            recipe,
            "--data",
            data,
            "--out",
            str(run),
            "--steps",
            str(steps),
            "--resume",
            *size,
            *settings,
        ]
        clusters = out / f"clusters-{number}.safetensors"
        labellers = ["--instances", f"cuts:{run}", "--semantics", f"clusters:{run},{clusters}"]
        grids = [f"--set={option}.grid_size={GRID_SIZE}" for option in ("instances", "semantics")]
        fit = ["--fit", f"--set=semantics.fit.num_clusters={NUM_CLUSTERS}"]
        yield ["label", images, str(out / f"maps-{number}"), *labellers, *grids, *fit]
        yield ["label", truth, str(out / f"test-{number}"), *labellers, *grids, "--truth", truth]


def read_score(comparison: Mapping[str, Any], column: str, key: str, tags: Mapping[str, str]) -> Score | None:
    """Return a score of the maps or a baseline in `comparison.json`, None if there is none with an interval."""
    for metric in comparison["metrics"].get(column, []):
        if metric["key"] == key and metric["tags"] == tags and None not in (metric["value"], metric["interval"]):
            return Score(metric["value"], *metric["interval"])
    return None


def is_better(one: Score, other: Score) -> str:
    """Return whether the first score is higher, in a word or two. Intervals that overlap show nothing."""
    if one.low <= other.high and other.low <= one.high:
        return "not clearly: the intervals overlap"
    return "yes" if one.value > other.value else "no"


def describe_results(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines with the scores of the maps of both encoders, and whether the second ones are better."""
    for name, (key, tags) in SCORES.items():
        scores = {
            "first maps": read_score(first, "maps", key, tags),
            "second maps": read_score(second, "maps", key, tags),
            **{baseline: read_score(second, baseline, key, tags) for baseline in BASELINES},
        }
        known = {column: score for column, score in scores.items() if score}
        yield f"{name}, %: {', '.join(f'{column} {score}' for column, score in known.items())}"
        ours = known.pop("second maps", None)
        for column, score in known.items():
            if ours:
                yield f"  are the second maps better than the {column}? {is_better(ours, score)}"


def main() -> int:
    """Run the commands, print the results, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="?", default="generated", help="any source of images (default: generated)")
    parser.add_argument("--truth", default="generated", help="scenes with true maps (default: generated)")
    parser.add_argument("--out", type=Path, default=Path("self-labelling"), help="output directory")
    parser.add_argument("--steps", type=int, default=400, help="steps of each pre-training (default: 400)")
    arguments = parser.parse_args()
    for words in list_commands(arguments.images, arguments.truth, arguments.out, arguments.steps):
        print(f"$ c2fmae {shlex.join(words)}", flush=True)
        if code := subprocess.run([sys.executable, "-m", "c2fmae_cli", *words]).returncode:
            return code
    first, second = (
        json.loads((arguments.out / f"test-{number}" / "comparison.json").read_text()) for number in (1, 2)
    )
    print(*describe_results(first, second), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
