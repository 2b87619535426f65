"""`c2fmae describe`: the architecture of a recipe."""

from shlex import quote

from c2fmae_cli.options import RecipeArgument, SetOption


def describe(recipe: RecipeArgument, set_: SetOption = None) -> None:
    """Print the architecture of a recipe: inputs, shapes, parameters and operations of each part."""
    import torch

    from c2fmae.methods import build_method
    from c2fmae.recipes.config import load_recipe

    config = load_recipe(recipe, set_ or [])
    with torch.device("meta"):
        method = build_method(config.method)
    print(f"{config.name}  {config.title}\n\n{method.describe()}\n")
    words = [recipe, *(word for change in set_ or [] for word in ("--set", change))]
    print(f"next: c2fmae recipes show {' '.join(map(quote, words))}")
