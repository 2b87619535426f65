"""Ten minutes on one GPU: what a step costs, what the loop adds, what the data allow, and whether results are equal.

    python -m benchmarks.gpu_run --out RESULTS --seconds 540
    python -m benchmarks.gpu_run --out RESULTS --cpu            # the same code in miniature, to rehearse it

Every stage is a process with a limit of its own, so one that hangs or fails costs only itself. Results are written at
once to results.jsonl, and a table ends the run. Stages come in the order of their worth.
"""

import argparse
import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu_run.bench import Bench
from benchmarks.gpu_run.checks import compare_with_cpu, run_distributed
from benchmarks.gpu_run.steps import (
    measure_blocks,
    measure_ceilings,
    measure_eager,
    measure_mae,
    measure_model,
    profile_step,
    sweep_settings,
)
from benchmarks.gpu_run.training import (
    measure_data,
    measure_loop,
    measure_run,
    measure_run_without_compilation,
    write_pack,
)


@dataclass(frozen=True)
class Stage:
    """A stage, its limit, and the seconds that must be left to start it."""

    run: Callable[[Bench], None]
    limit: float
    least: float


STAGES: Mapping[str, Stage] = {
    "ceilings": Stage(measure_ceilings, 45, 20),
    "parity": Stage(compare_with_cpu, 90, 40),
    "eager": Stage(measure_eager, 70, 40),
    "loop": Stage(measure_loop, 100, 60),
    "pack": Stage(write_pack, 60, 30),
    "run": Stage(measure_run, 120, 80),
    "blocks": Stage(measure_blocks, 90, 60),
    "mae": Stage(measure_mae, 120, 60),
    "ddp": Stage(run_distributed, 120, 60),
    "run-off": Stage(measure_run_without_compilation, 90, 60),
    "data": Stage(measure_data, 60, 40),
    "profile": Stage(profile_step, 90, 60),
    "model": Stage(measure_model, 150, 90),
    "sweep": Stage(sweep_settings, 300, 60),
}


def run_stages(bench: Bench, names: list[str], seconds: float) -> None:
    """Run stages one after the other, each in a process of its own, and print a table of all results.

    Exit with an error if a stage has failed.
    """
    start, failed = time.perf_counter(), []
    for name in names:
        stage, left = STAGES[name], seconds - (time.perf_counter() - start)
        if left < stage.least and not bench.is_cpu:
            print(f"{name}: skipped, {left:.0f} s are left", flush=True)
            continue
        print(f"{name} ({left:.0f} s left)", flush=True)
        command = [sys.executable, "-m", "benchmarks.gpu_run", "--out", str(bench.out), "--work", str(bench.work)]
        command += ["--stage", name, *["--cpu"] * bench.is_cpu]
        failure: object = None
        try:
            limit = None if bench.is_cpu else min(stage.limit, max(left - 5, 1))
            failure = subprocess.run(command, timeout=limit, check=False).returncode or None
        except subprocess.TimeoutExpired:
            failure = "time limit"
        if failure is not None:
            failed.append(name)
            Bench(bench.out, bench.work, bench.is_cpu, name).record(f"{name}: FAILED", float("nan"), "", str(failure))
    print()
    for row in bench.read_results():
        print(f"{row['stage']:10s}{row['name']:72s}{row['value']:12.5g} {row['unit']:8s}{row['comment']}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all stages, or the one of this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory of results")
    parser.add_argument("--work", type=Path, help="directory of data and runs; by default within that of results")
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--cpu", action="store_true", help="rehearse in miniature")
    parser.add_argument("--only", nargs="*", choices=STAGES, default=list(STAGES))
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    work = options.work or options.out / "work"
    for folder in (options.out, work):
        folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.out, work, options.cpu, options.stage or "")
    if options.stage is None:
        run_stages(bench, options.only, options.seconds)
        return
    torch.manual_seed(0)
    if options.cpu:
        torch.set_num_threads(1)
        torch.compile = partial(torch.compile, backend="aot_eager")  # generating code takes minutes on a CPU
    with contextlib.suppress(KeyboardInterrupt):
        STAGES[options.stage].run(bench)


if __name__ == "__main__":
    main()
