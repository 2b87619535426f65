"""Run the commands of the documentation again, and print the figures that it states beside those measured now.

    python -m benchmarks.documented_figures [--run quickstart] [--only knn]

Pre-trains the quickstart in the run directory unless it has finished (minutes), then evaluates it. Other CPUs and
versions of torch round differently, so after training, figures differ by a few points: compare them with the intervals.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from c2fmae.core.run_dir import RunDir
from c2fmae.eval.metrics import Metric, find_metric
from c2fmae.eval.results import load_result


@dataclass(frozen=True)
class Figure:
    """Documented values of one evaluation of the quickstart, and the command that measures them."""

    words: tuple[str, ...]
    documented: dict[str, float]
    """Percent, for the run and the same ViT untrained."""
    page: str
    key: str = "top1"
    tags: dict[str, str | int] = field(default_factory=dict)


GENERATED = ("--data", "generated", "--untrained")
LOADING = ("--set", "data.cache=true", "--set", "data.workers=0")
FIGURES = {
    "knn": Figure(
        ("knn", *GENERATED), {"run": 59.3, "untrained": 11.6}, "evaluating.md", tags={"votes": "weighted", "k": 20}
    ),
    "linear": Figure(("linear", *GENERATED), {"run": 78.3, "untrained": 19.8}, "evaluating.md"),
    "attentive": Figure(("attentive", *GENERATED), {"run": 78.0, "untrained": 18.9}, "evaluating.md"),
    "dense": Figure(("dense", *GENERATED), {"run": 52.4, "untrained": 28.6}, "evaluating.md", key="mean_iou"),
    "finetune": Figure(
        ("finetune", *GENERATED, "--epochs", "40", *LOADING, "--resume"),
        {"run": 79.6, "untrained": 37.6},
        "finetuning.md",
    ),
}


def measure(name: str, run: Path) -> dict[str, Metric]:
    """Run the command of a figure, and return the metric of the run and of the same ViT untrained."""
    figure, out = FIGURES[name], run / "documented" / name
    execute("eval", figure.words[0], str(run), *figure.words[1:], "--out", str(out))
    metrics = {}
    for path in sorted(out.rglob("results.json")):
        result = load_result(path.parent)
        metric = find_metric(result.metrics, figure.key, **figure.tags)
        is_baseline = any(word in f"{result.source} {path}" for word in ("untrained", "scratch"))
        if metric is not None:
            metrics["untrained" if is_baseline else "run"] = metric
    return metrics


def execute(*words: str) -> None:
    """Run a command, and print it."""
    print(f"$ c2fmae {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "c2fmae_cli", *words], check=True, stdout=subprocess.DEVNULL)


def compare(names: list[str], run: Path) -> Iterator[str]:
    """Yield a line for each figure."""
    yield f"{'':12s}{'model':12s}{'documented':>12s}{'measured':>10s}  page"
    for name in names:
        for model, metric in measure(name, run).items():
            figure = FIGURES[name]
            yield f"{name:12s}{model:12s}{figure.documented[model]:12.1f}{metric.value:10.1f}  docs/{figure.page}"


def main() -> None:
    """Parse the arguments, and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("quickstart"), help="run directory of the quickstart")
    parser.add_argument("--only", action="append", choices=FIGURES, help="an evaluation; repeatable")
    arguments = parser.parse_args()
    if (RunDir(arguments.run).read_state() or {}).get("status") != "finished":
        execute("quickstart", "--out", str(arguments.run))
    for line in compare(arguments.only or list(FIGURES), arguments.run):
        print(line, flush=True)


if __name__ == "__main__":
    main()
