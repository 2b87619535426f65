"""Named experiments: each is a function that returns a full config.

No module here imports torch. It is imported when a recipe is called, to validate the config.

>>> from c2fmae.recipes import RECIPES
>>> recipe = RECIPES.get("c2fmae-b")()
>>> recipe.method.encoder.name, recipe.method.decoder.name
('vit_base_patch16_224', 'cascaded')
>>> recipe.override(["method.decoder.name=parallel"]).deviations[-1]
'changed: method.decoder.name=parallel'
"""

from c2fmae.recipes import (  # noqa: F401 - each registers its recipes
    ablations,
    branches,
    budget,
    mask_tokens,
    small,
    small_branches,
    standard,
)
from c2fmae.recipes.registry import RECIPES, Recipe

__all__ = ["RECIPES", "Recipe"]
