"""Recipes by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from c2fmae.config.pretrain import PretrainConfig
from c2fmae.core.registry import Registry
from c2fmae.recipes.config import RecipeConfig

RECIPES: Registry[Callable[[], RecipeConfig]] = Registry("recipe")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A function that makes a pre-training config, and its provenance. Calling a recipe returns the full config."""

    name: str
    title: str
    make: Callable[[], PretrainConfig]
    source: str
    reported: tuple[str, ...] = ()
    deviations: Mapping[str, str] = field(default_factory=dict)
    """Deviations by setting."""
    unmeasured: tuple[str, ...] = ()

    def __call__(self) -> RecipeConfig:
        """Return the full config."""
        return RecipeConfig(
            name=self.name,
            title=self.title,
            source=self.source,
            reported=self.reported,
            deviations=tuple(f"{setting}: {text}" for setting, text in self.deviations.items()),
            unmeasured=self.unmeasured,
            **dict(self.make()),
        )


def register_recipe(recipe: Recipe) -> Recipe:
    """Register a recipe under its name; lists show its title."""
    return RECIPES.register(recipe.name, recipe.title)(recipe)
