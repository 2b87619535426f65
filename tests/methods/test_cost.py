from dataclasses import FrozenInstanceError
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from c2fmae.config.method import MethodConfig
from c2fmae.core.decoder_options import ParallelOptions, StagedOptions
from c2fmae.core.masks import Masks
from c2fmae.core.operation_count import ForwardCost, count_with_fvcore, count_with_torch
from c2fmae.methods import METHODS, build_method
from c2fmae.methods.masked.cost import compute_pretraining_cost

TINY = ("encoder.name=test_vit", "encoder.depth=2", "decoder.options.depth=1", "image_size=[64, 96]")
VITS = {"test_vit": (64, 6, 192), "vit_base_patch16_224": (768, 12, 3072)}
"""Width, depth unless the config has another, and width inside the MLP."""


def config_of(method: str, *overrides: str) -> MethodConfig:
    return METHODS.get(method)().override(list(overrides))


@cache
def cost_by_torch(method: str, *overrides: str) -> ForwardCost:
    return compute_pretraining_cost(config_of(method, *overrides))


def self_block(tokens: int, dim: int, inside: int) -> int:
    return 2 * tokens * (4 * dim**2 + 2 * dim * inside) + 4 * tokens**2 * dim


def cross_block(queries: int, keys: int, dim: int) -> int:
    return 2 * (queries * (2 + 8) + keys * 2) * dim**2 + 4 * queries * keys * dim


def arithmetic(config: MethodConfig) -> dict[str, int]:
    """Parts, from sizes alone: patches of 16, a global token, MLPs of four times the decoder's width."""
    width, depth, inside = VITS[config.encoder.name]
    depth = config.encoder.depth or depth
    name, decoder, granularities = config.decoder.name, config.decoder.options, config.granularities
    patches = config.image_size[0] // 16 * (config.image_size[1] // 16)
    visible = config.resolve_num_visible(patches)
    shown = [visible // len(granularities) + (n < visible % len(granularities)) for n in range(len(granularities))]
    inputs = {"rgb": 16 * 16 * 3, "semantic": 64 * 4 * 4, "instance": 64 * 4 * 4}
    outputs = {"rgb": 16 * 16 * 3, "semantic": 133 * 4 * 4, "instance": 32 * 4 * 4}
    heads = config.head_plans()
    enter = 2 * (visible + 1) * width * decoder.dim
    if name == "joint":
        tokens = 1 + len(granularities) * patches
        stages, entries = decoder.depth * self_block(tokens, decoder.dim, 4 * decoder.dim), 1
    else:
        all_keys = len(granularities) * patches
        context = decoder.context if isinstance(decoder, ParallelOptions) else "all"
        keys = [all_keys if context == "all" else 1 + visible for _ in heads]
        if context == "visible" and name == "cascaded":
            keys = [count + patches * min(stage, 1) for stage, count in enumerate(keys)]
        rest = decoder.depth * self_block(patches, decoder.dim, 4 * decoder.dim)
        if name == "self_attention":
            stages = len(heads) * (rest + self_block(patches, decoder.dim, 4 * decoder.dim))
        else:
            stages = sum(cross_block(patches, count, decoder.dim) + rest for count in keys)
        assert isinstance(decoder, StagedOptions)
        entries = 1 if decoder.entry == "shared" else len(heads)
    return {
        "embeddings": sum(2 * n * inputs[name] * width for n, name in zip(shown, granularities, strict=True)),
        "encoder": depth * self_block(1 + visible, width, inside),
        "decoder": entries * enter + stages,
        "heads": sum(2 * patches * decoder.dim * outputs[head.granularity] for head in heads),
    }


CONFIGS = [
    ("c2fmae", TINY),
    ("mae", TINY),
    ("multimae", TINY),
    ("c2fmae", (*TINY, "decoder.options.context=visible")),
    ("c2fmae", (*TINY, "decoder.name=parallel", "num_visible=19")),
    ("c2fmae", (*TINY, "decoder.name=self_attention", "decoder.options.entry=own", "decoder.options.depth=2")),
]
WHOLE, WIDE = ([(method, depth) for method in ("c2fmae", "multimae")] for depth in ((), ("encoder.depth=2",)))
"""Of full size, and so but for the encoder's depth: a trace of each of many blocks that are alike takes long."""


@pytest.mark.parametrize(("method", "overrides"), [*CONFIGS, *WHOLE])
def test_torch_counts_what_arithmetic_says(method: str, overrides: tuple[str, ...]) -> None:
    cost = cost_by_torch(method, *overrides)
    assert {name: part.flops for name, part in cost.part_costs.items()} == arithmetic(config_of(method, *overrides))


@pytest.mark.compile  # a trace, in which sizes are tensors: shape checks cannot read them
@pytest.mark.parametrize(("method", "overrides"), [*CONFIGS, *WIDE])
def test_fvcore_counts_what_torch_does(method: str, overrides: tuple[str, ...]) -> None:
    assert compute_pretraining_cost(config_of(method, *overrides), counter=count_with_fvcore) == cost_by_torch(
        method, *overrides
    )


def test_mae_costs_what_is_said_of_it() -> None:
    cost = compute_pretraining_cost(config_of("mae"))
    for_hidden_patches = 2 * 147 * 768 * 768  # which others project, and then drop
    assert (cost.flops + for_hidden_patches) / 1e9 == pytest.approx(19.56, abs=0.005)
    tables_of_positions = 197 * (768 + 512)  # which others count
    assert (cost.parameters + tables_of_positions) / 1e6 == pytest.approx(111.9, abs=0.05)
    assert cost.stage_costs == {}


def test_stages_are_what_the_entry_leaves_of_the_decoder() -> None:
    config = config_of("multimae", *TINY)
    cost, decoder = cost_by_torch("multimae", *TINY), build_method(config).model.get_submodule("decoder")
    assert list(cost.stage_costs) == ["semantic", "instance", "rgb", "rgb_normalized_pixels"]
    entries = sum(parameter.numel() for parameter in decoder.get_submodule("entries").parameters())
    assert cost.part_costs["decoder"].parameters == entries + sum(
        stage.parameters for stage in cost.stage_costs.values()
    )
    enter = 4 * 2 * (config.resolve_num_visible(24) + 1) * 64 * 256
    assert cost.part_costs["decoder"].flops == enter + sum(stage.flops for stage in cost.stage_costs.values())


def test_parameters_are_those_of_the_built_model() -> None:
    config = config_of("c2fmae", *TINY)
    assert cost_by_torch("c2fmae", *TINY).parameters == sum(p.numel() for p in build_method(config).model.parameters())


def test_visible_patches_fall_to_granularities_as_they_do_on_average() -> None:
    config = config_of("c2fmae", *TINY, "num_visible=24", 'concentration={"semantic": 1, "instance": 2, "rgb": 3}')
    id_patches, photo_patches = 4 + 8, 12
    assert (
        compute_pretraining_cost(config).part_costs["embeddings"].flops
        == 2 * (id_patches * 1024 + photo_patches * 768) * 64
    )


def test_drop_path_and_checkpoints_cost_nothing_more() -> None:
    config = config_of("c2fmae", *TINY, "encoder.drop_path=0.5", "encoder.grad_checkpointing=true")
    assert compute_pretraining_cost(config) == cost_by_torch("c2fmae", *TINY)


class Fused(nn.Module):
    def forward(self, maps: dict[str, Tensor], masks: Masks) -> Tensor:
        x = maps["rgb"]
        return F.scaled_dot_product_attention(x[..., :4], x[:, :, :5, :4], x[:, :, :5])


def test_fused_attention_is_counted_by_torch_and_by_fvcore() -> None:
    maps = {"rgb": torch.zeros(2, 3, 7, 8, device="meta")}
    masks = Masks.from_visible_granularities({"rgb"}, ["rgb"], batch=2, num_patches=1)
    products = 2 * 3 * 7 * 5 * (4 + 8)
    assert count_with_torch(Fused(), maps, masks)[""] == count_with_fvcore(Fused(), maps, masks)[""] == 2 * products


def test_a_cost_does_not_change() -> None:
    cost = compute_pretraining_cost(config_of("mae", *TINY))
    with pytest.raises(FrozenInstanceError):
        cost.part_costs = {}  # type: ignore[misc]
