"""Recipes by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from c2fmae.core.registry import Registry

if TYPE_CHECKING:
    import c2fmae.recipes.config

_RUN_SECTIONS = ("data", "training", "saving", "watching")

RECIPES: Registry[Callable[[], "c2fmae.recipes.config.RecipeConfig"]] = Registry("recipe")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe as data: a method, what is changed of it, and what is known. Called, it returns the full config."""

    name: str
    title: str
    method: str
    """The name of the method that it starts from."""
    method_overrides: tuple[str, ...] = ()
    """Settings of the method, `a.b=value`."""
    run_overrides: tuple[str, ...] = ()
    """Settings beside the method's: `training.lr=1e-3`, `data.train=generated`."""
    source: str
    reported: tuple[str, ...] = ()
    deviations: Mapping[str, str] = field(default_factory=dict)
    """By the setting that each is about, the method's without `method.`."""
    unmeasured: tuple[str, ...] = ()

    def __call__(self) -> "c2fmae.recipes.config.RecipeConfig":
        """Return the full config; only now are torch and timm imported."""
        from c2fmae.methods import METHODS
        from c2fmae.pretrain import PretrainConfig
        from c2fmae.recipes.config import RecipeConfig

        method = METHODS.get(self.method)().override(self.method_overrides)
        run_config = PretrainConfig(method=method).override(self.run_overrides)
        return RecipeConfig(
            name=self.name,
            title=self.title,
            source=self.source,
            reported=self.reported,
            deviations=tuple(
                f"{setting if setting.partition('.')[0] in _RUN_SECTIONS else f'method.{setting}'}: {text}"
                for setting, text in self.deviations.items()
            ),
            unmeasured=self.unmeasured,
            **dict(run_config),
        )


def register_recipe(recipe: Recipe) -> Recipe:
    """Register a recipe under its name; its title is what lists show."""
    return RECIPES.register(recipe.name, recipe.title)(recipe)
