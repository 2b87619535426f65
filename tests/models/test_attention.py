import copy
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from c2fmae.models import Encoder
from c2fmae.models.attention import CrossAttention, CrossBlock, DeviceAwareAttention, create_self_block
from tests.models.tiny_models import (
    VISIBLE_DECODERS,
    draw_latent,
    draw_masks_at_random,
    draw_normal,
    make_decoder,
    make_tiny_vit,
    randomise_parameters,
)

pytestmark = pytest.mark.numeric

HEADS = 2


def choices(module: nn.Module) -> list[bool]:
    """Whether each attention in a module is fused."""
    return [bool(each.fused_attn) for each in module.modules() if hasattr(each, "fused_attn")]


def set_fused(module: nn.Module, is_fused: bool) -> None:
    for each in module.modules():
        if hasattr(each, "fused_attn"):
            each.fused_attn = is_fused  # type: ignore[assignment]  # a plain bool


def all_parts() -> dict[str, DeviceAwareAttention]:
    parts: dict[str, nn.Module] = {name: make_decoder(name) for name in VISIBLE_DECODERS}
    parts["encoder"] = Encoder(make_tiny_vit())
    assert all(isinstance(part, DeviceAwareAttention) for part in parts.values())
    return parts  # type: ignore[return-value]  # as asserted


@pytest.mark.parametrize("name", ["encoder", *VISIBLE_DECODERS])
def test_attention_is_explicit_on_a_cpu_also_after_moving_devices(name: str) -> None:
    part = all_parts()[name]
    assert choices(part)
    assert not any(choices(part))
    for move in (part.double, part.bfloat16, lambda: part.to("meta"), lambda: part.to_empty(device="cpu")):
        set_fused(part, True)
        move()
        assert not any(choices(part))
    assert not any(choices(copy.deepcopy(part)))


@pytest.mark.parametrize("name", ["encoder", *VISIBLE_DECODERS])
def test_attention_is_fused_on_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    part = all_parts()[name]
    monkeypatch.setattr(part, "parameters", lambda: iter([SimpleNamespace(is_cuda=True)]))
    nn.ModuleList([part]).float()  # through its parent module
    assert all(choices(part))


def test_fused_attention_does_not_change_an_encoder() -> None:
    encoder, tokens = Encoder(make_tiny_vit()).eval(), draw_normal(2, 5, 64)
    explicit = encoder(tokens)
    set_fused(encoder, True)
    torch.testing.assert_close(encoder(tokens), explicit, rtol=1e-5, atol=1e-5)


def test_many_tokens_without_gradients_use_fused_attention() -> None:
    encoder = Encoder(make_tiny_vit(depth=1)).eval()
    seen: list[bool] = []
    encoder.blocks[0].register_forward_hook(lambda *_: seen.append(choices(encoder)[0]))
    many, few = draw_normal(1, 1023, 64), draw_normal(1, 1022, 64)  # and a class token
    with torch.no_grad():
        fused = encoder(many)
        encoder.get_intermediate_layers(many, [1])
        encoder(few)
    explicit = encoder(many)
    assert seen == [True, True, False, False]
    assert not any(choices(encoder))
    torch.testing.assert_close(fused, explicit, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", VISIBLE_DECODERS)
def test_fused_attention_does_not_change_a_decoder(name: str) -> None:
    decoder, masks = make_decoder(name), draw_masks_at_random()
    explicit = decoder(draw_latent(masks), masks, (2, 3))
    set_fused(decoder, True)
    for stage, features in decoder(draw_latent(masks), masks, (2, 3)).items():
        torch.testing.assert_close(features, explicit[stage], rtol=1e-5, atol=1e-5)


def one_at_a_time(attention: CrossAttention, queries: Tensor, context: Tensor) -> Tensor:
    """Cross-attention as a loop over images, heads and queries."""
    dim = queries.shape[2]
    width = dim // HEADS
    outputs = torch.zeros_like(queries)
    for image in range(len(queries)):
        for head in range(HEADS):
            part = slice(head * width, (head + 1) * width)
            keys = context[image] @ attention.kv.weight[:dim][part].T + attention.kv.bias[:dim][part]
            values = context[image] @ attention.kv.weight[dim:][part].T + attention.kv.bias[dim:][part]
            for place in range(queries.shape[1]):
                query = attention.q.weight[part] @ queries[image, place] + attention.q.bias[part]
                likeness = torch.tensor([float(query @ key) / width**0.5 for key in keys])
                outputs[image, place, part] = likeness.softmax(dim=0) @ values
    return outputs @ attention.proj.weight.T + attention.proj.bias


@given(st.integers(1, 4), st.integers(1, 7), st.booleans())
def test_cross_attention_equals_a_loop_over_queries(num_queries: int, num_keys: int, is_fused: bool) -> None:
    attention = randomise_parameters(CrossAttention(8, HEADS), std=0.7)
    attention.fused_attn = is_fused
    queries, context = draw_normal(2, num_queries, 8), draw_normal(2, num_keys, 8, seed=1)
    with torch.no_grad():
        expected = one_at_a_time(attention, queries, context)
        torch.testing.assert_close(attention(queries, context), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_fused", [False, True])
def test_the_order_of_a_context_does_not_matter(is_fused: bool) -> None:
    attention = randomise_parameters(CrossAttention(8, HEADS))
    attention.fused_attn = is_fused
    queries, context = draw_normal(2, 3, 8), draw_normal(2, 6, 8, seed=1)
    torch.testing.assert_close(attention(queries, context.flip(1)), attention(queries, context), rtol=1e-5, atol=1e-6)


def test_a_cross_block_adds_attention_then_mlp_to_its_queries() -> None:
    block = randomise_parameters(CrossBlock(8, HEADS, 2.0))
    queries, context = draw_normal(2, 3, 8), draw_normal(2, 6, 8, seed=1)
    seen = queries + block.attn(block.norm_query(queries), block.norm_context(context))
    assert torch.equal(block(queries, context), seen + block.mlp(block.norm(seen)))


def test_without_residual_the_output_depends_on_queries_through_attention_only() -> None:
    """Mean and scale of the queries, which the norm removes, have no effect then."""
    queries, context = draw_normal(2, 3, 8), draw_normal(2, 6, 8, seed=1)
    louder = 3 * queries + 5
    asking, adding = (randomise_parameters(CrossBlock(8, HEADS, query_residual=on)) for on in (False, True))
    torch.testing.assert_close(asking(louder, context), asking(queries, context), rtol=1e-4, atol=1e-4)
    assert (adding(louder, context) - adding(queries, context)).abs().mean() > 1
    with torch.no_grad():
        for block in (asking, adding):
            block.attn.proj.weight.zero_()  # attention is constant, so only the residual differs between queries
        assert float(asking(queries, context).flatten(0, 1).std(dim=0).max()) < 1e-6
        assert float(adding(queries, context).flatten(0, 1).std(dim=0).min()) > 0.1


def test_a_self_attention_block_is_that_of_mae() -> None:
    """Pre-norm, all biases, no norm of queries and keys."""
    block = randomise_parameters(create_self_block(8, HEADS, 2.0))
    x = draw_normal(2, 3, 8)
    expected = nn.TransformerEncoderLayer(
        8, HEADS, 16, dropout=0.0, activation="gelu", batch_first=True, norm_first=True, layer_norm_eps=1e-6
    )
    state = block.state_dict()
    theirs = {
        "self_attn.in_proj_weight": "attn.qkv.weight",
        "self_attn.in_proj_bias": "attn.qkv.bias",
        "self_attn.out_proj.weight": "attn.proj.weight",
        "self_attn.out_proj.bias": "attn.proj.bias",
        **{f"linear{n}.{kind}": f"mlp.fc{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")},
        **{f"norm{n}.{kind}": f"norm{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")},
    }
    assert set(theirs.values()) == state.keys()
    expected.load_state_dict({ours: state[name] for ours, name in theirs.items()})
    torch.testing.assert_close(block(x), expected.train()(x), rtol=1e-5, atol=1e-5)
