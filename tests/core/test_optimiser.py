from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]
from torch import nn

from c2fmae.core.errors import UserError
from c2fmae.core.optimiser import build_adamw, build_parameter_groups, get_moments, load_moments, set_lr, step_if
from c2fmae.core.specs import BackboneSpec, EncoderConfig
from c2fmae.models.backbones.backbone import wrap_vit
from tests.methods.tiny_methods import build_tiny_method

pytestmark = pytest.mark.numeric

SMALL = [
    "encoder.depth=2",
    "encoder.num_heads=2",
    "encoder.dim=16",
    "decoder.options.dim=16",
    "decoder.options.num_heads=2",
]

BLOCK = """
    norm1.weight 0, norm1.bias 0, attn.qkv.weight 1, attn.qkv.bias 0, attn.proj.weight 1, attn.proj.bias 0,
    norm2.weight 0, norm2.bias 0, mlp.fc1.weight 1, mlp.fc1.bias 0, mlp.fc2.weight 1, mlp.fc2.bias 0
"""
CROSS = """
    norm_query.weight 0, norm_query.bias 0, norm_context.weight 0, norm_context.bias 0, norm.weight 0, norm.bias 0,
    attn.q.weight 1, attn.q.bias 0, attn.kv.weight 1, attn.kv.bias 0, attn.proj.weight 1, attn.proj.bias 0,
    mlp.fc1.weight 1, mlp.fc1.bias 0, mlp.fc2.weight 1, mlp.fc2.bias 0
"""
GOLDEN = {
    "embeddings.semantic.": "classes.weight 0, proj.weight 1, proj.bias 0",
    "embeddings.instance.": "classes.weight 0, proj.weight 1, proj.bias 0",
    "embeddings.rgb.": "proj.weight 1, proj.bias 0",
    "encoder.": "cls_token 0",
    "encoder.blocks.0.": BLOCK,
    "encoder.blocks.1.": BLOCK,
    "decoder.entries.0.": "mask_token 0, granularity 0, project.weight 1, project.bias 0",
    "decoder.stages.semantic.first.": CROSS,
    "decoder.stages.semantic.rest.0.": BLOCK,
    "decoder.stages.instance.first.": CROSS,
    "decoder.stages.instance.rest.0.": BLOCK,
    "decoder.stages.rgb.first.": CROSS,
    "decoder.stages.rgb.rest.0.": BLOCK,
    "heads.semantic.": "weight 1, bias 0",
    "heads.instance.": "weight 1, bias 0",
    "heads.rgb.": "weight 1, bias 0",
}
"""Every parameter of a tiny model, and whether it decays."""

LR_SCALES = {"encoder.blocks.1.": 0.5, "encoder.blocks.0.": 0.25, "encoder.cls": 0.125, "embeddings.": 0.125}
"""Factors of the learning rate with a layer decay of 0.5; all other parameters have 1."""


def golden() -> dict[str, bool]:
    pairs = [(start, *entry.split()) for start, entries in GOLDEN.items() for entry in entries.split(",")]
    return {start + name: decays == "1" for start, name, decays in pairs}


def table(groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Weight decay and factor of the learning rate by parameter."""
    return {name: (group["weight_decay"], group["lr_scale"]) for group in groups for name in group["names"]}


def test_which_parameters_decay() -> None:
    model = build_tiny_method("c2fmae", *SMALL).model
    groups = build_parameter_groups(model, weight_decay=0.05)
    assert {group["name"] for group in groups} == {"decayed", "not decayed"}
    assert table(groups) == {name: (0.05 if decays else 0.0, 1.0) for name, decays in golden().items()}


def test_layer_decay_scales_learning_rates_by_depth() -> None:
    model = build_tiny_method("c2fmae", *SMALL).model
    groups = build_parameter_groups(model, weight_decay=0.05, layer_decay=0.5)
    scales = {name: next((s for start, s in LR_SCALES.items() if name.startswith(start)), 1.0) for name in golden()}
    assert table(groups) == {name: (0.05 if decays else 0.0, scales[name]) for name, decays in golden().items()}
    assert {group["name"] for group in groups} == {
        *("layer 0, decayed", "layer 0, not decayed", "layer 1, decayed", "layer 1, not decayed", "layer 2, decayed"),
        *("layer 2, not decayed", "layer 3, decayed", "layer 3, not decayed"),
    }


@pytest.mark.parametrize("layer_decay", [1.0, 0.65])
def test_every_parameter_is_in_one_group_with_its_name(layer_decay: float) -> None:
    model = build_tiny_method("c2fmae", *SMALL).model
    groups = build_parameter_groups(model, weight_decay=0.05, layer_decay=layer_decay)
    named = dict(model.named_parameters())
    assert sorted(name for group in groups for name in group["names"]) == sorted(named)
    for group in groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            assert parameter is named[name]


def test_frozen_parameters_are_in_no_group() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    assert list(table(build_parameter_groups(model, weight_decay=0.05))) == ["1.weight", "1.bias"]


def test_rates_and_decays_are_those_of_timm_except_for_the_last_norm() -> None:
    vit = timm.create_model("test_vit", num_classes=3, img_size=32, depth=3, reg_tokens=2, pre_norm=True)
    assert isinstance(vit, VisionTransformer)
    encoder = EncoderConfig(name="test_vit", depth=3, has_norm=True)
    backbone = wrap_vit(vit, BackboneSpec(encoder=encoder, image_size=(32, 32)))
    names = {id(parameter): name for name, parameter in vit.named_parameters()}
    groups = param_groups_layer_decay(
        vit, weight_decay=0.05, layer_decay=0.75, no_weight_decay_list=vit.no_weight_decay()
    )
    theirs = {names[id(p)]: (group["weight_decay"], group["lr_scale"]) for group in groups for p in group["params"]}
    ours = {
        names[id(parameter)]: (group["weight_decay"], group["lr_scale"])
        for group in build_parameter_groups(backbone, weight_decay=0.05, layer_decay=0.75)
        for parameter in group["params"]
    }
    norm = ("norm.weight", "norm.bias")
    assert {name: theirs.pop(name) for name in norm} == dict.fromkeys(norm, (0.0, 0.75))  # as the last block
    assert {name: ours.pop(name) for name in norm} == dict.fromkeys(norm, (0.0, 1.0))  # as in MAE and BEiT
    for name in ("pos_embed", "head.weight", "head.bias"):  # a backbone computes its positions and has no head
        del theirs[name]
    assert ours == theirs


def test_layer_decay_needs_a_model_that_declares_its_layers() -> None:
    with pytest.raises(UserError) as caught:
        build_parameter_groups(nn.Linear(2, 2), weight_decay=0.05, layer_decay=0.5)
    assert str(caught.value) == (
        "training.layer_decay: Linear does not declare its layers (trunk_layers is missing). Set training.layer_decay=1"
    )


def test_set_lr_scales_the_rate_of_each_group() -> None:
    model = build_tiny_method("c2fmae", *SMALL).model
    groups = build_parameter_groups(model, weight_decay=0.05, layer_decay=0.5)
    optimiser = build_adamw(groups, betas=(0.9, 0.95))
    for rate in (1e-3, 0.0, 2e-3):
        set_lr(optimiser, rate)
        assert {group["name"]: group["lr"] for group in optimiser.param_groups} == {
            "layer 0, decayed": rate / 8,
            "layer 0, not decayed": rate / 8,
            "layer 1, decayed": rate / 4,
            "layer 1, not decayed": rate / 4,
            "layer 2, decayed": rate / 2,
            "layer 2, not decayed": rate / 2,
            "layer 3, decayed": rate,
            "layer 3, not decayed": rate,
        }


def linear() -> tuple[nn.Linear, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = nn.Linear(2, 1).double()
    return model, build_adamw(build_parameter_groups(model, weight_decay=0.1), betas=(0.9, 0.95))


def take_step(model: nn.Linear, optimiser: torch.optim.AdamW, step: int) -> None:
    set_lr(optimiser, 0.01)
    (model(torch.full((1, 2), 1.0 + step, dtype=torch.float64)) ** 2).sum().backward()
    optimiser.step()
    optimiser.zero_grad()


def test_a_step_equals_the_formulas_of_the_adamw_paper() -> None:
    model, optimiser = linear()
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    first, second = ({name: torch.zeros_like(each) for name, each in weights.items()} for _ in range(2))
    for step in range(4):
        x = torch.full((1, 2), 1.0 + step, dtype=torch.float64)
        error = x @ weights["weight"].T + weights["bias"]
        for name, gradient in {"weight": 2 * error * x, "bias": 2 * error.flatten()}.items():
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.95 * second[name] + 0.05 * gradient**2
            mean, square = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.95 ** (step + 1))
            decay = 0.1 if name == "weight" else 0.0
            weights[name] = weights[name] * (1 - 0.01 * decay) - 0.01 * mean / (square.sqrt() + 1e-8)
        take_step(model, optimiser, step)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach(), weights[name], rtol=1e-12, atol=1e-12)


def test_a_condition_decides_about_a_step_and_changes_no_bit_of_it() -> None:
    (model, optimiser), (other, gated) = linear(), linear()
    for step in range(4):
        for each in (model, other):
            (each(torch.full((1, 2), 1.0 + step, dtype=torch.float64)) ** 2).sum().backward()
        gradients = [parameter.grad.clone() for parameter in other.parameters() if parameter.grad is not None]
        before = {name: tensor.clone() for name, tensor in (other.state_dict() | get_moments(gated)).items()}
        for optim in (optimiser, gated):
            set_lr(optim, 0.01)
        for parameter in other.parameters():
            parameter.grad = torch.full_like(parameter, torch.nan)
        step_if(gated, torch.tensor(False))
        after = other.state_dict() | get_moments(gated)
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
        assert not any(after[name].any() for name in after.keys() - before.keys())  # moments of no step
        for parameter, gradient in zip(other.parameters(), gradients, strict=True):
            parameter.grad = gradient
        step_if(gated, torch.tensor(True))
        optimiser.step()
        expected, found = (m.state_dict() | get_moments(o) for m, o in ((model, optimiser), (other, gated)))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        optimiser.zero_grad()
        gated.zero_grad()


def test_restored_moments_continue_exactly() -> None:
    model, optimiser = linear()
    assert get_moments(optimiser) == {}
    take_step(model, optimiser, 0)
    moments = {name: tensor.clone() for name, tensor in get_moments(optimiser).items()}
    assert sorted(moments) == [
        f"{name}/{key}" for name in ("bias", "weight") for key in ("exp_avg", "exp_avg_sq", "step")
    ]
    again, other = linear()
    again.load_state_dict(model.state_dict())
    load_moments(other, moments)
    for step in range(1, 3):
        take_step(model, optimiser, step)
        take_step(again, other, step)
    assert torch.equal(model.weight, again.weight)
    assert torch.equal(model.bias, again.bias)
    found, expected = get_moments(other), get_moments(optimiser)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_moments_are_restored_by_name_into_other_groups() -> None:
    model, optimiser = linear()
    take_step(model, optimiser, 0)
    one_group = {"names": ["bias", "weight"], "params": [model.bias, model.weight]}
    other = build_adamw([one_group], betas=(0.9, 0.95))
    assert len(other.param_groups) != len(optimiser.param_groups)
    load_moments(other, get_moments(optimiser))
    assert get_moments(other).keys() == get_moments(optimiser).keys()
    assert torch.equal(get_moments(other)["weight/exp_avg"], get_moments(optimiser)["weight/exp_avg"])
