"""`c2fmae pretrain`: train a recipe, alone or under torchrun, and go on with it after whatever ended it."""

import json
import os
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from c2fmae.recipes.config import RecipeConfig

SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; repeatable.")
]


def pretrain(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name, a YAML file, or a run's folder.")],
    data: Annotated[
        list[str] | None,
        typer.Option(help="What to learn from: a folder, shards, or `generated`; several are mixed."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/RECIPE unless given.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, or begin it if there is none.")
    ] = False,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Go on although the config is not that of before.")
    ] = False,
    init: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Start from a run, timm:NAME@FILE, or anything that holds a ViT."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Take a few steps, and tell what the run would take. Nothing is written.")
    ] = False,
    set_: SetOption = None,
) -> None:
    """Pre-train a recipe. The same command works alone, under `torchrun` and under `srun`.

    SIGTERM and SIGUSR1 save and end with 75; Ctrl-C saves, a second one leaves at once. `--resume` goes on from the
    newest whole checkpoint, and ends in the same bits.
    """
    from c2fmae.pretrain import pretrain as run
    from c2fmae.recipes.config import load_recipe

    overrides = list(set_ or [])
    if data:
        overrides = [*data_overrides(data, load_recipe(recipe)), *overrides]
    if init:
        overrides.insert(0, f"init={quote_yaml(init)}")
        overrides[:0] = ["method.encoder.keep_positions=true"] * init.startswith("timm:")
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
        is_finished = outcome.status == "finished"
        print(f"next: c2fmae {f'view reconstruct {quote(str(run_dir))}' if is_finished else resume_command(run_dir)}")
    raise typer.Exit(outcome.exit_code)


def is_main_process() -> bool:
    """Return whether this is the process that speaks."""
    return os.environ.get("RANK", "0") == "0"


def resume_command(run_dir: Path) -> str:
    """Return the command that goes on with a run."""
    return f"pretrain {quote(str(run_dir))} --resume"


def data_overrides(data: list[str], recipe: "RecipeConfig") -> list[str]:
    """Return the overrides that `--data` stands for: settings of a recipe's own scenes do not suit other data."""
    from c2fmae.config.data import DatasetConfig

    if data == ["generated"]:
        side, train = max(recipe.method.image_size), recipe.data.train
        is_own = isinstance(train, DatasetConfig) and train.name == "generated"
        return [] if is_own else [f"data.train={{name: generated, options: {{size: {side}, length: 16384}}}}"]
    settings = [f"data.train=[{', '.join(map(quote_yaml, data))}]", "data.held_out=null"]
    # Generated scenes fit into memory and take long to draw; other data does neither.
    return settings + ["data.cache=false", "data.workers=2"] * recipe.data.cache


def quote_yaml(text: str) -> str:
    """Return a text as YAML takes it in a list."""
    return json.dumps(text)
