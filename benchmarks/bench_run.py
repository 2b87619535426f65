"""Overhead of a run apart from its steps: `python -m benchmarks.bench_run [quick overhead stall resume rows wait]`.

`quick`: `--help`, a step of the smallest recipe, and an update of the progress display. `overhead`: a step of the
training loop with logging, compared with the same arithmetic in a plain loop. `stall`: the time that saving adds to the
steps around it. `resume`: from the start of the process to the first step. `rows`: the metrics of 250,000 steps, as a
resume and as a report reads them. `wait`: small steps beside busy processes, with OpenMP threads that spin or sleep.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from io import StringIO
from itertools import cycle
from pathlib import Path
from statistics import median

import torch
from rich.console import Console

from benchmarks.tables import print_costs
from c2fmae.core.distributed import World
from c2fmae.core.experiment_config import SavingConfig
from c2fmae.core.loop import StepReport, TrainingLoop, TrainingState, autocast
from c2fmae.core.metric_columns import MetricColumns
from c2fmae.core.metric_rows import iterate_rows, iterate_rows_from_end, read_rows
from c2fmae.core.optimiser import set_lr
from c2fmae.core.progress import ProgressDisplay
from c2fmae.core.run_dir import RunDir
from c2fmae.core.saving import Saver
from c2fmae.core.spikes import SpikeDetector
from c2fmae.core.watching import RunLogger
from c2fmae.eval.cost.speed_and_memory import time_in_turn
from c2fmae.methods import MaskedAutoencoding
from c2fmae.methods.masked.batch_masker import MaskedScenes
from c2fmae.methods.masked.model_inputs import standardise_inputs
from c2fmae.pretrain import Pretraining, build_pretraining
from c2fmae.recipes.config import load_recipe

GENERATED_OVERRIDES = [
    "data.train=generated",
    "data.train.options={size: 224, length: 64, difficulty: easy}",
    "training.batch_size=8",
    "training.epochs=null",
    "training.steps=100000",
    "training.warmup_epochs=null",
    "training.clip=1",
    "data.workers=0",
]


def make_experiment(recipe: str, *overrides: str) -> tuple[Pretraining, list[list[MaskedScenes]]]:
    """Return an experiment and some of its batches, prepared in advance so that data loading is not measured."""
    experiment = build_pretraining(load_recipe(recipe, [*GENERATED_OVERRIDES, *overrides]), World())
    with experiment.open_batches(0) as stream:
        return experiment, [[*next(stream)] for _ in range(4)]


def make_bare_step(
    experiment: Pretraining, training: TrainingState, batches: list[list[MaskedScenes]]
) -> Callable[[], object]:
    """Return a step of a plain loop, without reduced counts, reports and metric rows."""
    stream, numbers, method = cycle(batches), iter(range(10**9)), experiment.method
    assert isinstance(method, MaskedAutoencoding)

    def step() -> object:
        (masked,), index = next(stream), next(numbers)
        maps = standardise_inputs(method.config, masked.scenes)
        with autocast(experiment.config.training, experiment.world.device):
            loss = method.compute_loss(method.model(maps, masked.masks), maps, masked.masks).total
        loss.backward()
        torch.nn.utils.clip_grad_norm_(training.model.parameters(), 1.0)
        set_lr(training.optimiser, experiment.plan.lr(index))
        training.optimiser.step()
        training.optimiser.zero_grad()
        return loss.item()

    return step


def make_loop_step(
    experiment: Pretraining, training: TrainingState, batches: list[list[MaskedScenes]], watch: RunLogger
) -> Callable[[], StepReport]:
    """Return a step of the training loop, followed by the logging of a run."""
    loop = TrainingLoop(experiment.task, experiment.config.training, experiment.plan, experiment.world)
    reports = loop.run(training, watch.time_batches(cycle(batches)), lambda: {"stop": 0, "save": 0, "broken": 0})

    def step() -> StepReport:
        report = next(reports)
        watch.log_step(report)
        return report

    return step


def bench_quick(times: int = 5) -> None:
    command = [sys.executable, "-m", "c2fmae_cli", "--help"]
    seconds = min(time_call(lambda: subprocess.run(command, stdout=subprocess.DEVNULL)) for _ in range(times))
    print(f"--help: {seconds:.2f} s", flush=True)
    experiment, batches = make_experiment("c2fmae-debug", "data.options={size: 64, length: 64, difficulty: easy}")
    training = TrainingState.create(experiment.method.model, experiment.config.training)
    step = make_bare_step(experiment, training, batches)
    print(f"a step of c2fmae-debug: {1e3 * min(time_call(step) for _ in range(20)):.0f} ms", flush=True)
    for place, is_terminal in (("a terminal", True), ("a file", False)):
        console = Console(file=StringIO(), force_terminal=is_terminal)
        with ProgressDisplay(total_steps=10**6, samples_per_step=1, console=console) as progress:
            seconds = min(time_call(partial(display_steps, progress)) for _ in range(times)) / 2000
        print(f"a step displayed on {place}: {1e6 * seconds:.1f} µs", flush=True)


def display_steps(progress: ProgressDisplay) -> None:
    row = {"loss": 2.0, "loss/semantic": 0.75, "loss/instance": 0.5, "loss/rgb": 0.25, "grad_norm": 1234.5}
    for step in range(1, 2001):
        progress.update(step, row, seconds=0.1, wait_fraction=0.1)


def bench_overhead(rounds: int = 15) -> None:
    variants: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("bare", "loop"):
            experiment, batches = make_experiment("c2fmae-s")
            training = TrainingState.create(experiment.method.model, experiment.config.training)
            watch = RunLogger(
                RunDir(Path(folder)),
                experiment.config.watching,
                experiment.plan,
                start_step=0,
                experiment_config={},
                is_quiet=False,
            )
            variants[name] = (
                make_bare_step(experiment, training, batches)
                if name == "bare"
                else make_loop_step(experiment, training, batches, watch)
            )
        times = time_in_turn(variants, rounds=rounds)
    print_costs("A step of c2fmae-s, batch 8", times, peers=["bare"], samples=8)


def bench_stall(every: int = 50) -> None:
    experiment, batches = make_experiment("c2fmae-b")
    training = TrainingState.create(experiment.method.model, experiment.config.training)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        watch = RunLogger(
            RunDir(Path(folder)),
            experiment.config.watching,
            experiment.plan,
            start_step=0,
            experiment_config={},
            is_quiet=False,
        )
        step = make_loop_step(experiment, training, batches, watch)
        with Saver(Path(folder) / "checkpoints", SavingConfig(), experiment.world, experiment.metadata()) as saver:
            timed = [time_call(step) for _ in range(8)][2:]
            usual = median(timed)
            for number in ("first", "second", "third"):
                blocked = time_call(lambda: saver.save(training))
                during = [time_call(step) for _ in range(4)]
                lost = blocked + sum(max(seconds - usual, 0) for seconds in during)
                print(
                    f"{number} save: median step {usual:.2f} s; blocked for {blocked:.2f} s; "
                    f"next 4 steps {', '.join(f'{seconds:.2f}' for seconds in during)} s; "
                    f"{lost / (every * usual):.1%} of {every} steps",
                    flush=True,
                )


def bench_resume() -> None:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        run = Path(folder) / "run"
        overrides = [word for change in [*GENERATED_OVERRIDES, "watching.figures=0"] for word in ("--set", change)]
        command = [
            sys.executable,
            "-m",
            "c2fmae_cli",
            "pretrain",
            "c2fmae-b",
            "--out",
            str(run),
            "--resume",
            *overrides,
        ]
        for number in range(3):
            metrics, done = run / "metrics.jsonl", number * 2
            started = time.perf_counter()
            process = subprocess.Popen([*command, "--set", "saving.steps=2"], stderr=subprocess.DEVNULL)
            try:
                while not metrics.exists() or metrics.read_bytes().count(b"\n") <= done:
                    time.sleep(0.05)
                seconds = time.perf_counter() - started
                while not (run / f"checkpoints/step-{done + 2:08d}").exists():
                    time.sleep(0.05)
            finally:
                process.kill()
                process.wait()
            print(f"{'resumed' if number else 'started'} at step {done}: {seconds:.1f} s to the first step", flush=True)


WAITING = {
    "default": {},
    "as the command waits": {"GOMP_SPINCOUNT": "1000"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
"""Settings of the threads of OpenMP by name."""


def bench_rows(steps: int = 250_000) -> None:
    names = ("loss", "loss/semantic", "loss/instance", "loss/rgb", "grad_norm", "lr", "alpha", "beta", "valid/semantic")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        with path.open("w") as file:
            for step in range(1, steps + 1):
                file.write(json.dumps({"step": step, **dict.fromkeys(names, 1 / (step + 0.1))}) + "\n")
        variants: dict[str, Callable[[], object]] = {
            "all rows": lambda: read_rows(path),
            "columns, for the report": lambda: MetricColumns(iterate_rows(path)),
            "the end, for a resume": lambda: SpikeDetector().restore(iterate_rows_from_end(path)),
        }
        print_costs(f"Rows of {steps:,} steps", time_in_turn(variants, rounds=3), peers=["all rows"], samples=steps)


def bench_wait(steps: int = 40) -> None:
    code = (
        "import torch, time; from benchmarks.bench_run import *; e, b = make_experiment('c2fmae-tiny', "
        "'data.train.options={size: 32, length: 256, difficulty: plain}', 'data.held_out=null', "
        "'training.batch_size=64'); "
        "t = TrainingState.create(e.method.model, e.config.training); s = make_bare_step(e, t, b); "
        "[s() for _ in range(5)]; "
        f"print(min(time_call(s) for _ in range({steps})), median([time_call(s) for _ in range({steps})]))"
    )
    for num_busy in (0, 1, 2):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num_busy)]
        try:
            for name, variables in WAITING.items():
                out = subprocess.run(
                    [sys.executable, "-c", code],
                    env={**os.environ, **variables},
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout.split()
                best, usual = (round(1e3 * float(seconds)) for seconds in out)
                print(f"{num_busy} busy processes, {name}: minimum {best} ms, median {usual} ms", flush=True)
        finally:
            for process in busy:
                process.kill()


def time_call(step: Callable[[], object]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


if __name__ == "__main__":
    sections = {
        "quick": bench_quick,
        "overhead": bench_overhead,
        "stall": bench_stall,
        "resume": bench_resume,
        "rows": bench_rows,
        "wait": bench_wait,
    }
    for name, section in sections.items():
        if name in (sys.argv[1:] or ["quick", "overhead", "stall", "resume", "rows"]):
            section()
