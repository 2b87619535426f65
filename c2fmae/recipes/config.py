"""Configs of recipes: a pre-training config with its provenance, from a name, a YAML file or a run directory."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field

from c2fmae.config.data import DatasetConfig
from c2fmae.config.pretrain import PretrainConfig
from c2fmae.core.config import RESUME_SAFE, format_override
from c2fmae.core.errors import UserError, unknown_name_error
from c2fmae.core.experiment_config import RUN_COMMANDS, ConfigHeader
from c2fmae.core.log import is_main_process
from c2fmae.core.splits import TEST_NAMES, TRAIN_NAMES, find_splits

log = logging.getLogger(__name__)

R = TypeVar("R", bound="RecipeConfig")


class Provenance(ConfigHeader):
    """Source of an experiment, and its reported results."""

    name: Annotated[str, Field(min_length=1), RESUME_SAFE]
    title: Annotated[str, RESUME_SAFE]
    source: Annotated[str, RESUME_SAFE]
    """Paper, table or code that it reproduces."""
    reported: Annotated[tuple[str, ...], RESUME_SAFE] = ()
    """Results that papers report. None of them is measured by this project."""
    deviations: Annotated[tuple[str, ...], RESUME_SAFE] = ()
    """Differences from the source, and choices where it is not specific. Most name the setting to change."""
    unmeasured: Annotated[tuple[str, ...], RESUME_SAFE] = ()
    """Results that this project has not measured."""


class RecipeConfig(PretrainConfig, Provenance):  # in this order YAML begins with the provenance
    """A named experiment."""

    @classmethod
    def from_dict(
        cls: type[R], values: Mapping[str, Any], overrides: Iterable[str] = (), *, source: str | None = None
    ) -> R:
        """Read a config, and add overrides to its deviations, since reported results do not apply to them."""
        overrides = list(overrides)
        recipe = super().from_dict(values, overrides, source=source)
        notes = [f"changed: {override}" for override in overrides]
        return recipe.model_copy(update={"deviations": (*recipe.deviations, *notes)})


def is_yaml_path(source: str) -> bool:
    """Return whether a source is the path of a YAML file, and not a recipe's name."""
    return source.endswith((".yaml", ".yml"))


def load_recipe(source: str, overrides: Iterable[str] = ()) -> RecipeConfig:
    """Return the config of a recipe's name, a YAML file or a run directory, with `a.b=value` overrides."""
    from c2fmae.recipes import RECIPES

    if is_yaml_path(source):
        return RecipeConfig.from_yaml(source, overrides)
    if (config := Path(source) / "config.yaml").is_file():
        from c2fmae.core.run_info import read_run_info  # imports torch

        if (kind := read_run_info(Path(source)).kind) != "pretraining":
            raise UserError(
                f"{source}: is a fine-tuned run. Resume it with: c2fmae {RUN_COMMANDS[kind]} {source} --resume"
            )
        return RecipeConfig.from_yaml(config, overrides)
    if Path(source).is_dir() and source not in RECIPES:
        raise UserError(
            f"{source}: is a folder, but not a run: it has no config.yaml. Give a recipe (`c2fmae recipes` lists "
            "them), a YAML file, or the directory of a run"
        )
    return RECIPES.get(source)().override(overrides)


def load_recipe_or_method(source: str, overrides: Iterable[str] = ()) -> RecipeConfig:
    """Return the config that `load_recipe` returns or, for a method's name, one with default data and training."""
    from c2fmae.config.presets import METHODS
    from c2fmae.recipes import RECIPES

    if is_yaml_path(source) or Path(source).is_dir() or source in RECIPES:
        return load_recipe(source, overrides)
    if source not in METHODS:
        raise unknown_name_error("recipe or method", source, [*RECIPES, *METHODS])
    title, method = METHODS.describe(source), METHODS.get(source)()
    return RecipeConfig(name=source, title=title, source="defaults of the method", method=method).override(overrides)


def data_overrides(recipe: RecipeConfig, sources: list[str]) -> list[str]:
    """Return the overrides that train a recipe on other data, without its settings for its own scenes.

    Of a folder that holds a training set and others, val is held out, or else test. `["generated"]` stands for
    generated scenes of the method's image size, unless the recipe has scenes of its own.
    """
    if sources == ["generated"]:
        if isinstance(recipe.data.train, DatasetConfig) and recipe.data.train.name == "generated":
            return []
        options = {"size": max(recipe.method.image_size), "length": 16384}
        return [format_override("data.train", {"name": "generated", "options": options})]
    splits = [find_splits(source) or {TRAIN_NAMES[0]: source} for source in sources]
    held_out = [next(sets[name] for name in TEST_NAMES if name in sets) for sets in splits if len(sets) > 1]
    overrides = [
        format_override("data.train", [next(iter(sets.values())) for sets in splits]),
        format_override("data.held_out", held_out or None),
    ]
    if held_out and is_main_process():
        log.info("note: %s", ", ".join(overrides))
    # Only generated scenes are cached and loaded without workers: they fit into memory and are slow to generate.
    return [*overrides, "data.cache=false", "data.workers=2"] if recipe.data.cache else overrides


def init_overrides(source: str) -> list[str]:
    """Return the overrides that initialise a recipe from a source of weights."""
    overrides = [format_override("init", source)]
    return ["method.encoder.keep_positions=true", *overrides] if source.startswith("timm:") else overrides
