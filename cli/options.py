"""Arguments and options that several commands share."""

import re
from importlib import import_module
from os.path import commonprefix
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
EmaOption = Annotated[bool, typer.Option("--ema", help="Load a run's averaged weights (training.ema, a teacher).")]
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


class Command(typer.core.TyperCommand):
    """A command whose errors explain patterns that the shell has expanded, and settings that are options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments. A `--data` with several values is the usual reason for unexpected ones."""
        from c2fmae.core.errors import UserError

        values = _values_after("--data", args)
        places = {(Path(value).parent, Path(value).suffix) for value in values if Path(value).is_file()}
        if len(values) > 1 and len(places) == 1 and all(Path(value).is_file() for value in values):
            start = commonprefix([str(Path(value).with_suffix("")) for value in values])  # noqa: RUF071 - of names
            pattern = f"{start}*{Path(values[0]).suffix}"
            raise UserError(
                f"--data: got {len(values)} paths, as a shell expands patterns. Quote the pattern, as in "
                f"--data '{pattern}'"
            )
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command. The error for an unknown setting names the option of that name."""
        from c2fmae.core.errors import UserError

        try:
            return super().invoke(ctx)
        except UserError as error:
            flags = {flag for parameter in self.params for flag in parameter.opts if flag.startswith("--")}
            text = re.sub(
                r"(?m)^(.*: |  |)(\w+): no such setting\.",
                lambda match: (
                    f"{match[0]} It is the option {flag}."
                    if (flag := f"--{match[2].replace('_', '-')}") in flags
                    else match[0]
                ),
                str(error),
            )
            if text == str(error):
                raise
            raise UserError(text) from error


def _values_after(option: str, args: list[str]) -> list[str]:
    """Return the arguments between an option and the next one."""
    following = args[args.index(option) + 1 :] if option in args else []
    end = next((index for index, value in enumerate(following) if value.startswith("-")), len(following))
    return following[:end]


def command_with_settings(config: str) -> type[typer.core.TyperCommand]:
    """Return a command class whose `--help` lists the settings of a config class, `package.module:Class`.

    The class is imported when the help is printed, so that other commands need not import its package.
    """

    class CommandWithSettings(Command):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            from c2fmae.core.config import list_settings

            module, _, name = config.partition(":")
            settings = ", ".join(list_settings(getattr(import_module(module), name)))
            self.help = f"{self.help or ''}\n\nSettings for --set: {settings}."
            super().format_help(ctx, formatter)

    return CommandWithSettings
