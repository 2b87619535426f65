"""`c2fmae doctor`: diagnose the installation, a run, or the differences between two runs."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from c2fmae.core.errors import UserError


def doctor(
    run_dir: Annotated[Path | None, typer.Argument(metavar="RUN", help="The directory of a run.")] = None,
    compare: Annotated[Path | None, typer.Option(metavar="OTHER", help="Compare the run with another run.")] = None,
    replay: Annotated[
        int | None, typer.Option(metavar="STEP", help="Repeat the forward pass of a step, such as a skipped one.")
    ] = None,
) -> None:
    """Report versions, devices and missing extras; or the state of a run and what --resume would do.

    With --replay, the samples with the largest losses of a step are listed.

    The exit code is 1 if a required package is missing or outdated, or a file of the run is corrupted.
    """
    if run_dir is None and compare is not None:
        raise UserError("--compare: needs two runs. Run: c2fmae doctor RUN --compare OTHER")
    if run_dir is None and replay is not None:
        raise UserError("--replay: needs a run. Run: c2fmae doctor RUN --replay STEP")
    if compare is not None and replay is not None:
        raise UserError("--replay: cannot be combined with --compare. Leave one of them out")
    if run_dir is not None and replay is not None:
        _print_replay(run_dir, replay)
        return
    if run_dir is None:
        from c2fmae.doctor.installation import diagnose_installation

        diagnosis = diagnose_installation()
    elif compare is None:
        from c2fmae.doctor.run import diagnose_run

        diagnosis = diagnose_run(run_dir)
    else:
        from c2fmae.doctor.comparison import compare_runs

        diagnosis = compare_runs(run_dir, compare)
    for line in diagnosis.lines:
        print(line)
    for problem in diagnosis.problems:
        print(f"problem: {problem}", file=sys.stderr)
    print(f"next: {diagnosis.next_command}")
    if diagnosis.problems:
        raise typer.Exit(1)


def _print_replay(run_dir: Path, step: int) -> None:
    from c2fmae.doctor.run import find_run
    from c2fmae.recipes.config import load_recipe
    from c2fmae.replay import replay_step

    find_run(run_dir)
    print(replay_step(load_recipe(str(run_dir)), run_dir, step))
