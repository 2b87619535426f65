"""`c2fmae pretrain`: pre-train a recipe in one process, under torchrun or under srun, and resume it."""

import json
from pathlib import Path
from typing import Annotated

import typer
from c2fmae_cli.options import (
    AcceptChangesOption,
    BatchSizeOption,
    DryRunOption,
    EpochsOption,
    LearningRateOption,
    SetOption,
    StepsOption,
    training_overrides,
)

from c2fmae.core.log import is_main_process


def pretrain(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe, a YAML file, or a run directory.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Training data: a folder, shards, or `generated`; of a folder with train and val, val is held out. "
            "Repeat it to mix several; quote patterns: 'coco/*.tar'."
        ),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE|FRACTION",
            help="Held-out data for losses: a source, or a fraction of the training data, such as 0.1.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run directory; by default runs/RECIPE.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the run in --out, or start it if there is none.")
    ] = False,
    accept_changes: AcceptChangesOption = False,
    init: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Initial weights: a run, timm:NAME@FILE, or any other source of a ViT."),
    ] = None,
    steps: StepsOption = None,
    epochs: EpochsOption = None,
    batch_size: BatchSizeOption = None,
    lr: LearningRateOption = None,
    dry_run: DryRunOption = False,
    set_: SetOption = None,
) -> None:
    """Pre-train a recipe. The same command works in one process, under `torchrun` and under `srun`.

    SIGTERM and SIGUSR1 save a checkpoint and exit with code 75; Ctrl-C saves one too, a second Ctrl-C aborts.
    --resume continues from the newest intact checkpoint and ends in bitwise the same weights.
    """
    from c2fmae.core.config import format_override
    from c2fmae.core.run_dir import RunDir
    from c2fmae.doctor.run import next_command
    from c2fmae.pretrain import pretrain as run
    from c2fmae.recipes.config import data_overrides, init_overrides, load_recipe

    overrides = [*training_overrides(steps, epochs, batch_size, lr), *(set_ or [])]
    if held_out is not None:
        source = float(held_out) if _is_number(held_out) else held_out
        overrides = [format_override("data.held_out", source), *overrides]
    if data:
        overrides = [*data_overrides(load_recipe(recipe), data), *overrides]
    if init:
        overrides = [*init_overrides(init), *overrides]
    config = load_recipe(recipe, overrides)
    is_run = (Path(recipe) / "config.yaml").is_file()
    run_dir = out or (Path(recipe) if is_run else Path("runs") / config.name)
    if dry_run:
        from c2fmae.core.distributed import init_distributed
        from c2fmae.measure import measure_run
        from c2fmae.pretrain import build_pretraining

        with init_distributed(config.training.device) as world:
            estimate = measure_run(build_pretraining(config, world), run_dir)
        if is_main_process():
            print(f"{estimate}\nnext: the same command without --dry-run")
        return
    outcome = run(config, run_dir, resume=resume, accept_changes=accept_changes)
    if is_main_process():
        print(f"{outcome.status} at step {outcome.step}: {run_dir}")
        print(f"next: {next_command(RunDir(run_dir), is_finished=outcome.status == 'finished')}")
    raise typer.Exit(outcome.exit_code)


def quote_yaml(text: str) -> str:
    """Return a text as YAML takes it in a list."""
    return json.dumps(text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
