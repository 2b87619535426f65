"""`c2fmae describe`: the architecture of a recipe or a method."""

from shlex import quote
from typing import Annotated

import typer
from c2fmae_cli.options import SetOption


def describe(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="The name of a recipe or a method, a YAML file, or a run.")
    ],
    set_: SetOption = None,
) -> None:
    """Print what is trained: who sees what, losses, a teacher, and the parameters and operations of each part."""
    import torch

    from c2fmae.methods import METHODS, build_method
    from c2fmae.recipes.config import load_recipe_or_method

    config = load_recipe_or_method(recipe, set_ or [])
    with torch.device("meta"):
        method = build_method(config.method)
    print(f"{config.name}  {config.title}\n\n{method.describe()}\n")
    if recipe in METHODS:
        print("next: c2fmae recipes  # experiments with this and other methods")
        return
    words = [recipe, *(word for change in set_ or [] for word in ("--set", change))]
    print(f"next: c2fmae recipes show {' '.join(map(quote, words))}")
