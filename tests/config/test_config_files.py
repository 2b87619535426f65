"""Config files: their first keys, the recorded backbone, and the settings that may change on resume."""

import pytest
import yaml

from c2fmae.config.pretrain import PretrainConfig
from c2fmae.core.errors import UserError
from c2fmae.eval.classification.config import FinetuneConfig
from c2fmae.recipes import RECIPES
from c2fmae.recipes.config import RecipeConfig


def test_a_file_begins_with_format_kind_and_provenance() -> None:
    tree = yaml.safe_load(RECIPES.get("c2fmae-debug")().to_yaml())
    assert list(tree) == [
        *("format", "kind", "name", "title", "source", "reported", "deviations", "unmeasured"),
        *("method", "data", "init", "training", "saving", "watching"),
    ]
    assert (tree["format"], tree["kind"]) == (2, "pretraining")
    tree = yaml.safe_load(FinetuneConfig(init="a").to_yaml())
    assert (list(tree)[:3], tree["kind"]) == (["format", "kind", "init"], "finetuning")


def test_a_file_of_a_newer_format_or_of_another_kind_is_rejected() -> None:
    tree = RECIPES.get("c2fmae-debug")().model_dump(mode="json")
    for changes, message in (
        ({"format": 3}, "mine.yaml: format: expected at most 2, got 3. Upgrade c2fmae, which wrote the file"),
        ({"kind": "finetuning"}, "mine.yaml: kind: expected 'pretraining', got 'finetuning'"),
    ):
        with pytest.raises(UserError) as caught:
            RecipeConfig.from_dict({**tree, **changes}, source="mine.yaml")
        assert str(caught.value).startswith(message)


def test_the_recorded_backbone_is_read_back() -> None:
    config = RECIPES.get("c2fmae-debug")()
    recorded = config.model_copy(update={"backbone": config.method.backbone_spec(("sky", "dog"))})
    tree = yaml.safe_load(recorded.to_yaml())
    assert list(tree)[-1] == "backbone"
    assert tree["backbone"]["class_names"] == ["sky", "dog"]
    assert RecipeConfig.from_dict(tree) == recorded


def test_settings_that_may_change_on_resume() -> None:
    assert PretrainConfig.resume_safe_keys() == [
        *("data.cache", "data.workers", "data.prefetch", "training.compile", "saving", "watching", "backbone"),
    ]
    assert set(FinetuneConfig.resume_safe_keys()) == set(PretrainConfig.resume_safe_keys())
    provenance = {"name", "title", "source", "reported", "deviations", "unmeasured"}
    assert set(RecipeConfig.resume_safe_keys()) == {*PretrainConfig.resume_safe_keys(), *provenance}
