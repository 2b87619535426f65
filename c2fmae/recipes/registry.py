"""Recipes by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from c2fmae.core.registry import Registry

if TYPE_CHECKING:
    import c2fmae.recipes.config

RECIPES: Registry[Callable[[], "c2fmae.recipes.config.RecipeConfig"]] = Registry("recipe")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe as data: a method, what is changed of it, and what is known. Called, it returns the full config."""

    name: str
    title: str
    method: str
    """The name of the method that it starts from."""
    changes: tuple[str, ...] = ()
    """Settings of the method, `a.b=value`."""
    source: str
    reported: tuple[str, ...] = ()
    deviations: Mapping[str, str] = field(default_factory=dict)
    """By the setting of the method that each is about."""
    unmeasured: tuple[str, ...] = ()

    def __call__(self) -> "c2fmae.recipes.config.RecipeConfig":
        """Return the full config; only now are torch and timm imported."""
        from c2fmae.methods import METHODS
        from c2fmae.recipes.config import RecipeConfig

        return RecipeConfig(
            name=self.name,
            title=self.title,
            source=self.source,
            reported=self.reported,
            deviations=tuple(f"method.{setting}: {text}" for setting, text in self.deviations.items()),
            unmeasured=self.unmeasured,
            method=METHODS.get(self.method)().override(self.changes),
        )


def register(recipe: Recipe) -> Recipe:
    """Register a recipe under its name; its title is what lists show."""
    return RECIPES.register(recipe.name, recipe.title)(recipe)
