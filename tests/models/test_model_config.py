from dataclasses import fields
from typing import Any

import pytest
from pydantic import ValidationError

from c2fmae.core.errors import UserError
from c2fmae.core.specs import EncoderConfig
from c2fmae.models import DECODERS, DecoderPlan
from c2fmae.models.config import DecoderConfig

Kind = type[EncoderConfig] | type[DecoderConfig]


def problem(kind: Kind, values: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        kind.from_dict(values, source="model.yaml")
    return str(caught.value).removeprefix("model.yaml: ")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dim": 30}, "dim: input should be a multiple of 4, got 30"),
        ({"dim": 0}, "dim: input should be greater than or equal to 4, got 0"),
        ({"dim": 64, "num_heads": 6}, "num_heads: 6 heads do not divide dim=64"),
        ({"num_heads": 0}, "num_heads: input should be greater than or equal to 1, got 0"),
        ({"depth": -1}, "depth: input should be greater than or equal to 0, got -1"),
        ({"mlp_ratio": 0}, "mlp_ratio: input should be greater than 0, got 0"),
        ({"context": "seen"}, "context: expected 'all' or 'visible', got 'seen'"),
        ({"carry": "first"}, "carry: expected 'last' or 'all', got 'first'"),
        ({"entry": "one"}, "entry: expected 'shared' or 'own', got 'one'. Did you mean 'own'?"),
        ({"stage_per": "head"}, "stage_per: expected 'granularity' or 'target', got 'head'"),
        ({"order": "rgb"}, "order: expected a list, got 'rgb'"),
        ({"num_head": 4}, "num_head: no such setting. Did you mean 'num_heads'?"),
    ],
)
def test_decoders_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    assert problem(DecoderConfig, values) == message


def test_an_unknown_decoder_is_refused_with_the_nearest() -> None:
    known = ", ".join(DECODERS)
    assert problem(DecoderConfig, {"name": "cascade"}) == (
        f"no decoder named 'cascade'. Did you mean 'cascaded'? Known: {known}"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": ""}, "name: expected a name, got nothing"),
        ({"drop_path": 1.0}, "drop_path: input should be less than 1, got 1.0"),
        ({"drop_path": -0.1}, "drop_path: input should be greater than or equal to 0, got -0.1"),
        ({"has_nrom": True}, "has_nrom: no such setting. Did you mean 'has_norm'?"),
    ],
)
def test_encoders_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    assert problem(EncoderConfig, values) == message


@pytest.mark.parametrize("kind", [EncoderConfig, DecoderConfig])
def test_settings_cannot_be_changed_in_place(kind: Kind) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        kind().name = "another"  # type: ignore[misc]


def test_the_paper_is_what_one_gets_without_saying_anything() -> None:
    assert DecoderConfig().model_dump() == {
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
    assert EncoderConfig().model_dump() == {
        "name": "vit_base_patch16_224",
        "patch_size": None,
        "dim": None,
        "depth": None,
        "num_heads": None,
        "mlp_ratio": None,
        "norm_eps": None,
        "drop_path": 0.0,
        "has_norm": False,
        "keep_positions": False,
        "grad_checkpointing": False,
    }


@pytest.mark.parametrize("name", list(DECODERS))
def test_every_decoder_can_be_asked_for_by_name(name: str) -> None:
    assert DecoderConfig(name=name).name == name


def test_all_that_a_recipe_says_of_a_decoder_reaches_its_plan() -> None:
    """Its name, order and stages are what the plan is made for; the rest are the plan's own, with the same defaults."""
    settings = DecoderConfig().model_dump(exclude={"name", "order", "stage_per"})
    planned = {field.name for field in fields(DecoderPlan)} - {"encoder_dim", "granularities", "stages"}
    assert settings.keys() == planned
    plan = DecoderPlan(encoder_dim=8, granularities=("rgb",), stages={"rgb": "rgb"})
    assert {name: getattr(plan, name) for name in planned} == settings
