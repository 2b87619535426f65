"""`c2fmae import …`: go on with what others have pre-trained."""

from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from c2fmae.recipes.config import RecipeConfig

import_ = typer.Typer(help="Make others' pre-trainings ones that can be gone on with.", no_args_is_help=True)

ImportFileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="What to import.")]
ImportedRunArgument = Annotated[
    Path, typer.Argument(metavar="OUT", help="The folder to make: a config, and a checkpoint of step 0.")
]
ChannelsOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Photos are to have so many channels; as many as it knows.")
]
NumHeadsOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Attention heads, which a file does not say.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; repeatable.")
]


@import_.command()
def mae(
    source: ImportFileArgument,
    out: ImportedRunArgument,
    channels: ChannelsOption = None,
    num_heads: NumHeadsOption = None,
    set_: SetOption = None,
) -> None:
    """Import an official file of MAE, or the folder of a Hugging Face ViTMAE, with its decoder where it has one.

    Official files rarely say what they predict: pixels normalised by patch, unless method.targets.rgb is set to other
    targets.
    """
    from c2fmae.importing import import_mae

    _run_import(import_mae, "mae", source, out, channels, num_heads, set_ or [])


@import_.command()
def multimae(
    source: ImportFileArgument,
    out: ImportedRunArgument,
    channels: ChannelsOption = None,
    num_heads: NumHeadsOption = None,
    set_: SetOption = None,
) -> None:
    """Import an official file of MultiMAE, with its decoders where it has them."""
    from c2fmae.importing import import_multimae

    _run_import(import_multimae, "multimae", source, out, channels, num_heads, set_ or [])


def _run_import(
    import_function: Callable[..., list[str]],
    method: str,
    source: Path,
    out: Path,
    channels: int | None,
    num_heads: int | None,
    overrides: list[str],
) -> None:
    notes = import_function(
        source, out, _derive_recipe(method, source, out), overrides, channels=channels, num_heads=num_heads
    )
    for note in notes:
        print(f"  {note}")
    print(f"wrote {out}: config.yaml and a checkpoint of step 0")
    print(f"next: c2fmae pretrain {quote(str(out / 'config.yaml'))} --data DATA --out RUN")


def _derive_recipe(method: str, source: Path, out: Path) -> "RecipeConfig":
    """Return the method's recipe, whose training is that of its paper, without what is told of its own model."""
    from c2fmae.recipes.config import load_recipe

    provenance = {
        "name": out.resolve().name,
        "title": f"{source.name}, gone on with.",
        "source": f"{source}; training as in the recipe {method}-b",
        "reported": (),
        "deviations": (),
        "unmeasured": ("whatever comes of going on with it",),
    }
    return load_recipe(f"{method}-b").model_copy(update=provenance)
