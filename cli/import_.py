"""`c2fmae import …`: continue pre-training from official checkpoints, and convert models of labellers."""

from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer
from c2fmae_cli.options import SetOption

if TYPE_CHECKING:
    from c2fmae.recipes.config import RecipeConfig

import_ = typer.Typer(
    help="Turn official checkpoints into runs that can be trained further, or into models of labellers.",
    no_args_is_help=True,
)

ImportFileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The official checkpoint.")]
ImportedRunArgument = Annotated[
    Path, typer.Argument(metavar="OUT", help="The run directory to create: a config, and a checkpoint of step 0.")
]
ChannelsOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Channels of the images; by default those of the checkpoint.")
]
NumHeadsOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Attention heads, which a checkpoint does not store.")
]


@import_.command()
def mae(
    source: ImportFileArgument,
    out: ImportedRunArgument,
    channels: ChannelsOption = None,
    num_heads: NumHeadsOption = None,
    set_: SetOption = None,
) -> None:
    """Import an official MAE checkpoint or a Hugging Face ViTMAE folder, with its decoder if it has one.

    Official checkpoints do not store their target: pixels normalised by patch, unless method.targets.rgb is set.
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
    """Import an official MultiMAE checkpoint, with its decoders if it has them."""
    from c2fmae.importing import import_multimae

    _run_import(import_multimae, "multimae", source, out, channels, num_heads, set_ or [])


@import_.command()
def labeller(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A model of transformers with pytorch_model.bin.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to create.")],
) -> None:
    """Import the model of a labeller: the same folder with model.safetensors, read without running its pickle.

    The new folder is loaded once, so that it works with `c2fmae label`.
    """
    from c2fmae.labelling.import_model import import_model

    imported = import_model(folder, out)
    for name in imported.unexpected:
        print(f"  not used: {name}")
    print(
        f"wrote {out}: {imported.model_type} with {imported.num_parameters:,} parameters, sha256"
        f" {imported.sha256[:12]}, {imported.licence}"
    )


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
    """Return the recipe of a method, with the training of its paper and the provenance of the imported file."""
    from c2fmae.recipes.config import load_recipe

    provenance = {
        "name": out.resolve().name,
        "title": f"Continued pre-training of {source.name}.",
        "source": f"{source}; training as in the recipe {method}-b",
        "reported": (),
        "deviations": (),
        "unmeasured": ("results of continued pre-training",),
    }
    return load_recipe(f"{method}-b").model_copy(update=provenance)
