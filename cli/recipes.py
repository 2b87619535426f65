"""`c2fmae recipes`: the named experiments, and what is known of each."""

from itertools import groupby
from shlex import quote
from typing import Annotated

import typer

recipes = typer.Typer(help="List the recipes, or show one in full.", invoke_without_command=True)

SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; repeatable.")
]


@recipes.callback()
def list_recipes(context: typer.Context) -> None:
    """List all recipes, or with `show` print one in full."""
    if context.invoked_subcommand is not None:
        return
    from c2fmae.recipes import RECIPES

    names = list(RECIPES)
    width = max(len(name) for name in names)
    for family, members in groupby(names, key=lambda name: name.partition("-")[0]):
        print(family)
        for name in members:
            print(f"  {name:{width}s}  {RECIPES.describe(name)}")
    print("next: c2fmae recipes show c2fmae-b")


@recipes.command()
def show(
    recipe: Annotated[str, typer.Argument(metavar="NAME", help="A recipe, or a YAML file that was written by show.")],
    set_: SetOption = None,
) -> None:
    """Print a recipe as YAML: where it is from, what is reported, left open and unmeasured, and every setting.

    The output is a file that can be changed and read back.
    """
    from c2fmae.recipes.config import is_yaml_path, load_recipe

    print(load_recipe(recipe, set_ or []).to_yaml(), end="")
    arguments = " ".join(
        quote(word) for word in (recipe, *(word for change in set_ or [] for word in ("--set", change)))
    )
    if is_yaml_path(recipe):
        print(f"# next: c2fmae describe {arguments}")
    else:
        print(f"# next: c2fmae recipes show {arguments} > mine.yaml; change it; c2fmae describe mine.yaml")
