"""`c2fmae recipes`: named experiments, with their source and their reported results."""

from itertools import groupby
from shlex import quote

import typer
from c2fmae_cli.options import RecipeArgument, SetOption

recipes = typer.Typer(help="List the recipes, or print one in full.", invoke_without_command=True)


@recipes.callback()
def list_recipes(context: typer.Context) -> None:
    """List all recipes; `show` prints one in full."""
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
    recipe: RecipeArgument,
    set_: SetOption = None,
) -> None:
    """Print a recipe as YAML: its source, reported results, deviations, unmeasured results, and every setting.

    The output is a file that other commands read in place of a recipe.
    """
    from c2fmae.recipes.config import is_yaml_path, load_recipe

    print(load_recipe(recipe, set_ or []).to_yaml(), end="")
    arguments = " ".join(
        quote(word) for word in (recipe, *(word for change in set_ or [] for word in ("--set", change)))
    )
    if is_yaml_path(recipe):
        print(f"# next: c2fmae describe {arguments}")
    else:
        print(f"# next: c2fmae recipes show {arguments} > mine.yaml  # then edit it, and: c2fmae describe mine.yaml")
