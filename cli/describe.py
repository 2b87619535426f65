"""`c2fmae describe`: what a recipe's model is made of."""

from shlex import quote
from typing import Annotated

import typer

SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; repeatable.")
]


def describe(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name, or a YAML file of one.")],
    set_: SetOption = None,
) -> None:
    """Print a recipe's architecture: what reads what, shapes, parameters and operations of each part."""
    from c2fmae.methods.masked.describe import describe_architecture as describe_method
    from c2fmae.recipes.config import load_recipe

    config = load_recipe(recipe, set_ or [])
    table = describe_method(config.method)
    print(f"{config.name}  {config.title}\n\n{table}\n")
    words = [recipe, *(word for change in set_ or [] for word in ("--set", change))]
    print(f"next: c2fmae recipes show {' '.join(map(quote, words))}  # every setting")
