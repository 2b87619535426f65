"""A recipe as YAML holds it, and where it is read from: a name or a file."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field

from c2fmae.core.config import Config
from c2fmae.core.errors import UserError
from c2fmae.eval.classification.config import is_finetuned
from c2fmae.pretrain import PretrainConfig
from c2fmae.recipes.registry import RECIPES

R = TypeVar("R", bound="RecipeConfig")


class Provenance(Config):
    """What is known of an experiment, and what is not."""

    name: Annotated[str, Field(min_length=1)]
    title: str
    source: str
    """The paper, table or code that it is from."""
    reported: tuple[str, ...] = ()
    """What papers report of it, never a figure of this project's."""
    deviations: tuple[str, ...] = ()
    """Where it departs from its source, or reads what its source leaves open; most name the setting to change."""
    unmeasured: tuple[str, ...] = ()
    """What this project has not measured."""


class RecipeConfig(PretrainConfig, Provenance):  # in this order YAML begins with what is told
    """A named experiment."""

    @classmethod
    def from_dict(
        cls: type[R], values: Mapping[str, Any], overrides: Iterable[str] = (), *, source: str | None = None
    ) -> R:
        """Read as every config is; changes are noted among the deviations, since what is reported is not of them."""
        overrides = list(overrides)
        recipe = super().from_dict(values, overrides, source=source)
        notes = [f"changed: {override}" for override in overrides]
        return recipe.model_copy(update={"deviations": (*recipe.deviations, *notes)})


def is_yaml_path(source: str) -> bool:
    """Return whether that is the name of a YAML file rather than of a recipe."""
    return source.endswith((".yaml", ".yml"))


def load_recipe(source: str, overrides: Iterable[str] = ()) -> RecipeConfig:
    """Return the recipe of that name, of that YAML file, or of that run's folder, with `a.b=value` changes."""
    if is_yaml_path(source):
        return RecipeConfig.from_yaml(source, overrides)
    if is_finetuned(Path(source)):
        raise UserError(f"{source}: is a fine-tuned run. Go on with it by: c2fmae eval finetune {source} --resume")
    if (config := Path(source) / "config.yaml").is_file():
        return RecipeConfig.from_yaml(config, overrides)
    return RECIPES.get(source)().override(overrides)
