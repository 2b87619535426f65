from typing import Any

import pytest
from pydantic import ValidationError

from c2fmae.config.decoder import DecoderConfig
from c2fmae.core.decoder_options import BlockOptions, CascadedOptions, JointOptions, ParallelOptions
from c2fmae.core.errors import UserError
from c2fmae.models import DECODERS


def problem(values: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        DecoderConfig.from_dict(values, source="model.yaml")
    return str(caught.value).removeprefix("model.yaml: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 30}, "dim: input should be a multiple of 4, got 30"),
        ({"dim": 0}, "dim: input should be greater than or equal to 4, got 0"),
        ({"num_heads": 0}, "num_heads: input should be greater than or equal to 1, got 0"),
        ({"depth": -1}, "depth: input should be greater than or equal to 0, got -1"),
        ({"mlp_ratio": 0}, "mlp_ratio: input should be greater than 0, got 0"),
        ({"context": "seen"}, "context: expected 'all' or 'visible', got 'seen'"),
        ({"carry": "first"}, "carry: expected 'last' or 'all', got 'first'"),
        ({"entry": "one"}, "entry: expected 'shared' or 'own', got 'one'. Did you mean 'own'?"),
        ({"stage_per": "head"}, "stage_per: expected 'granularity' or 'target', got 'head'"),
        ({"order": "rgb"}, "order: expected a list, got 'rgb'"),
        ({"num_head": 4}, "num_head: decoder 'cascaded' has no such option. Did you mean 'num_heads'?"),
    ],
)
def test_invalid_options_are_rejected(options: dict[str, Any], message: str) -> None:
    assert problem({"options": options}) == f"options.{message}"


def test_heads_must_divide_the_width() -> None:
    message = "options: num_heads: 6 heads do not divide dim=64"
    assert problem({"options": {"dim": 64, "num_heads": 6}}) == message


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("joint", "context"),
        ("joint", "entry"),
        ("self_attention", "context"),
        ("parallel", "carry"),
        ("cascaded", "has_norm"),
    ],
)
def test_options_of_other_decoders_are_rejected(name: str, option: str) -> None:
    known = ", ".join(DecoderConfig.option_class(name).model_fields)
    assert problem({"name": name, "options": {option: None}}) == (
        f"options.{option}: decoder {name!r} has no such option. Options: {known}"
    )


def test_an_unknown_decoder_is_rejected_with_the_nearest() -> None:
    known = ", ".join(DECODERS)
    assert problem({"name": "cascade"}) == (
        f"name: no decoder named 'cascade'. Did you mean 'cascaded'? Known: {known}"
    )


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        DecoderConfig().name = "another"  # type: ignore[misc]


def test_the_defaults_are_the_papers() -> None:
    assert DecoderConfig() == DecoderConfig(name="cascaded", options=CascadedOptions())
    assert DecoderConfig().model_dump() == {"name": "cascaded", "options": {}, "share": 1.0}
    assert DecoderConfig().model_dump(mode="json") == {
        "name": "cascaded",
        "options": {
            "order": None,
            "dim": 256,
            "num_heads": 8,
            "depth": 2,
            "mlp_ratio": 4.0,
            "entry": "shared",
            "stage_per": "granularity",
            "context": "all",
            "query_residual": True,
            "carry": "last",
        },
        "share": 1.0,
    }


@pytest.mark.parametrize("name", [name for name in DECODERS if name != "direct"])
def test_every_decoder_can_be_named_and_has_the_options_of_blocks(name: str) -> None:
    config = DecoderConfig(name=name, options={"dim": 32, "order": ["rgb"]})
    assert isinstance(config.options, BlockOptions)
    assert (config.options.dim, config.order, config.stage_per) == (32, ("rgb",), "granularity")


def test_another_decoder_takes_over_the_options_that_apply() -> None:
    config = DecoderConfig(name="parallel", options=ParallelOptions(dim=64, context="visible"))
    assert config.override(["name=cascaded"]).options == CascadedOptions(dim=64, context="visible")
    with pytest.raises(UserError, match="options.context: decoder 'joint' has no such option"):
        config.override(["name=joint"])
    assert DecoderConfig(options=CascadedOptions(dim=64)).override(["name=joint"]).options == JointOptions(dim=64)


def test_a_decoder_without_a_width_has_that_of_the_encoder() -> None:
    assert DecoderConfig(name="direct").resolve_dim(48) == 48
    assert DecoderConfig(options=CascadedOptions(dim=64)).resolve_dim(48) == 64
    unknown = problem({"name": "direct", "options": {"dim": 32}})
    assert unknown.endswith("decoder 'direct' has no such option. Options: none")
