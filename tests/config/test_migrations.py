"""Configs that earlier versions wrote are read; those of the current format pass through unchanged."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from c2fmae.config.data import DataConfig, DatasetConfig
from c2fmae.config.masked_method import MaskedConfig
from c2fmae.config.migrations import migrate_finetuning, migrate_labelled_data, migrate_method, migrate_pretraining
from c2fmae.config.presets import METHODS
from c2fmae.core.errors import UserError
from c2fmae.eval.classification.config import FinetuneConfig
from c2fmae.recipes import RECIPES
from c2fmae.recipes.config import RecipeConfig

FORMATS = Path(__file__).parents[1] / "formats" / "v1"

OLD_DECODER = {
    "name": "cascaded",
    "order": None,
    "dim": 256,
    "num_heads": 8,
    "depth": 2,
    "mlp_ratio": 4.0,
    "context": "all",
    "carry": "last",
    "query_residual": True,
    "entry": "shared",
    "stage_per": "granularity",
    "has_norm": False,
}
OLD_MASKING = {
    "policy": "progressive",
    "curriculum": {"name": "triangle", "options": {}},
    "blend": "topk",
    "object_share": 0.75,
    "max_objects": None,
    "weights": None,
    "options": {},
}


def read_old(**method: Any) -> MaskedConfig:
    return MaskedConfig.from_dict({"decoder": OLD_DECODER, "masking": OLD_MASKING, **method})


def test_a_recipe_of_version_0_1_equals_the_current_one() -> None:
    old = RecipeConfig.from_yaml(FORMATS / "recipe.yaml")
    previous_defaults = ["method.mask_noise=batch", "training.compile=off", "training.precision=bf16"]
    today = RECIPES.get("multimae-tiny")().override(previous_defaults)
    assert {name: value for name, value in old if name not in ("title", "source", "deviations", "unmeasured")} == {
        name: value for name, value in today if name not in ("title", "source", "deviations", "unmeasured")
    }


def test_files_of_all_formats_keep_their_masks() -> None:
    tree = RECIPES.get("c2fmae-b")().model_dump(mode="json")
    assert tree["method"].pop("mask_noise") == "rows"  # of new runs
    for format_keys in ({}, {"format": 2}):
        recipe = {key: value for key, value in tree.items() if key != "format"} | format_keys
        assert RecipeConfig.from_dict(recipe).masked_method.mask_noise == "batch"
        assert RecipeConfig.from_dict(recipe, ["method.mask_noise=rows"]).masked_method.mask_noise == "rows"


def test_a_fine_tuning_config_of_version_0_1_is_read() -> None:
    path = FORMATS / "runs" / "finetuned" / "config.yaml"
    old = yaml.safe_load(path.read_text())
    config = FinetuneConfig.from_yaml(path)
    assert (config.data.train, config.data.test) == (old["data"]["train"], old["data"]["test"])
    assert config.data.cache == old["data"]["keep"]
    assert config.watching.figures == old["watching"]["pictures"]


def test_options_that_apply_move_below_their_name_and_others_are_dropped() -> None:
    assert read_old() == MaskedConfig()
    joint = read_old(decoder={**OLD_DECODER, "name": "joint", "has_norm": True})
    assert joint.decoder.model_dump()["options"] == {
        "order": None,
        "dim": 256,
        "num_heads": 8,
        "depth": 2,
        "mlp_ratio": 4.0,
        "has_norm": True,
    }
    random = read_old(masking={**OLD_MASKING, "policy": "random"})
    assert random.masking.model_dump() == {"name": "random", "options": {}}
    instance = read_old(masking={**OLD_MASKING, "policy": "instance", "object_share": 0.5})
    assert instance.masking.given_options() == {"object_share": 0.5, "max_objects": None}


def test_curricula_keep_their_options() -> None:
    curriculum = {"name": "cosine", "options": {"order": ["random", "instance", "semantic"]}}
    masking = read_old(masking={**OLD_MASKING, "curriculum": curriculum}).masking
    assert masking.model_dump(mode="json")["options"]["curriculum"] == curriculum


def test_settings_that_were_renamed_are_read() -> None:
    old = read_old(weights={"rgb": 2}, average="cells", encoder={"checkpoint": True})
    assert (old.loss_weights, old.loss_average, old.encoder.grad_checkpointing) == ({"rgb": 2}, "cells", True)


def test_options_of_data_move_into_its_sources() -> None:
    old = {"train": "generated", "options": {"size": 32}, "held_out": "here", "held_out_options": {}, "keep": True}
    generated = DatasetConfig(name="generated", options={"size": 32})
    assert DataConfig.from_dict(old) == DataConfig(train=generated, held_out="here", cache=True)
    labelled = {
        "train": "generated",
        "test": "generated",
        "options": {"size": 32, "seed": 3},
        "test_options": {"seed": 4},
    }
    assert migrate_labelled_data(labelled) == {
        "train": {"name": "generated", "options": {"size": 32, "seed": 3}},
        "test": {"name": "generated", "options": {"size": 32, "seed": 4}},
    }


def test_misspelt_settings_are_not_lost() -> None:
    with pytest.raises(UserError, match="decoder.dimm: no such setting"):
        read_old(decoder={**OLD_DECODER, "dimm": 3})
    with pytest.raises(UserError, match="masking.name: no mask named 'semantc'"):
        read_old(masking={**OLD_MASKING, "policy": "semantc"})


@pytest.mark.parametrize("name", list(METHODS))
def test_methods_in_the_current_format_pass_through(name: str) -> None:
    for mode in ("python", "json"):
        tree = METHODS.get(name)().model_dump(mode=mode)
        assert migrate_method(tree) == tree


@pytest.mark.parametrize("name", ["c2fmae-b", "mae-tiny", "multimae-tiny"])
def test_recipes_in_the_current_format_pass_through(name: str) -> None:
    tree = RECIPES.get(name)().model_dump(mode="json")
    assert migrate_pretraining(tree) == tree


def test_fine_tunings_in_the_current_format_pass_through() -> None:
    tree = FinetuneConfig(init="a").model_dump(mode="json")
    assert migrate_finetuning(tree) == tree
