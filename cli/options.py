"""Arguments and options that several commands share."""

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one setting. Repeatable.")
]

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="The name of a recipe, or a YAML file.")]

BACKBONE_SOURCES_HELP = "A run, a checkpoint, timm:NAME, timm:NAME@FILE, an exported folder, or an official file."
BackboneSourceArgument = Annotated[str, typer.Argument(metavar="SOURCE", help=BACKBONE_SOURCES_HELP)]
BackboneSourcesArgument = Annotated[list[str], typer.Argument(metavar="SOURCE…", help=BACKBONE_SOURCES_HELP)]
CheckpointStepOption = Annotated[
    int | None, typer.Option("--step", help="Load this checkpoint of a run, not the newest.")
]
EmaOption = Annotated[bool, typer.Option("--ema", help="Load the averaged weights of a run (training.ema).")]
AllowMissingOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-missing", metavar="NAME", help="A tensor, or a pattern of names, that may be missing. Repeatable."
    ),
]

FigureDataOption = Annotated[str, typer.Option("--data", help="A shard, a folder of scenes or shards, or `generated`.")]
FigureOption = Annotated[Path, typer.Option("--out", help="The PNG file to write.")]

DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Measure a few steps and print the estimated cost. Nothing is written.")
]
AcceptChangesOption = Annotated[bool, typer.Option("--accept-changes", help="Resume although the config has changed.")]

StepsOption = Annotated[int | None, typer.Option("--steps", min=1, help="Length in steps.")]
EpochsOption = Annotated[float | None, typer.Option("--epochs", help="Length in epochs, instead of steps.")]
BatchSizeOption = Annotated[
    int | None, typer.Option("--batch-size", min=1, help="Samples per step, over all processes.")
]
LearningRateOption = Annotated[float | None, typer.Option("--lr", help="Peak learning rate, for any batch size.")]


def training_overrides(steps: int | None, epochs: float | None, batch_size: int | None, lr: float | None) -> list[str]:
    """Return the overrides that the options of a run's length, batch and learning rate stand for."""
    from c2fmae.core.config import format_override
    from c2fmae.core.errors import UserError

    if steps is not None and epochs is not None:
        raise UserError("--steps, --epochs: both give the length. Use one of them")
    settings = {"steps": steps, "epochs": epochs, "batch_size": batch_size, "lr": lr}
    return [format_override(f"training.{key}", value) for key, value in settings.items() if value is not None]


def command_with_settings(config: str) -> type[typer.core.TyperCommand]:
    """Return a command class whose `--help` lists the settings of a config class, `package.module:Class`.

    The class is imported when the help is printed, so that other commands need not import its package.
    """

    class CommandWithSettings(typer.core.TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            from c2fmae.core.config import list_settings

            module, _, name = config.partition(":")
            settings = ", ".join(list_settings(getattr(import_module(module), name)))
            self.help = f"{self.help or ''}\n\nSettings for --set: {settings}."
            super().format_help(ctx, formatter)

    return CommandWithSettings
