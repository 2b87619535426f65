import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from c2fmae.models import (
    DECODERS,
    Embeddings,
    Encoder,
    IdEmbedding,
    ImageEmbedding,
    MultiGranularAutoencoder,
    PredictionHead,
)
from c2fmae.models.attention import CrossAttention
from c2fmae.models.heads import MLPHead, PrototypeHead
from c2fmae.models.initialise import initialise, initialise_heads, rescale_residual_outputs
from tests.models.tiny_models import ALL_GRANULARITIES, NUM_CLASSES, create_decoder, create_timm_vit

pytestmark = pytest.mark.numeric

SCALE = 0.37
TOKENS = ("cls_token", "reg_token", "mask_token", "granularity", "classes.weight")


def model_of(decoder: str = "cascaded", *, seed: int = 0) -> MultiGranularAutoencoder:
    """A model as its libraries initialise it, from the global generator with this seed."""
    torch.manual_seed(seed)
    vit = create_timm_vit("test_vit", img_size=(32, 48), depth=2, reg_tokens=2, init_values=SCALE)
    embeddings: dict[str, nn.Module] = {
        "semantic": IdEmbedding(NUM_CLASSES, 64, patch=16),
        "instance": IdEmbedding(NUM_CLASSES, 64, patch=16),
        "rgb": ImageEmbedding(vit.patch_embed),
    }
    heads = {name: PredictionHead(name, 64, 48) for name in ALL_GRANULARITIES}
    return MultiGranularAutoencoder(
        Embeddings(embeddings), Encoder(vit), create_decoder(decoder, dim=64, entry="own", has_norm=True), heads
    )


def drawn(decoder: str = "cascaded", *, seed: int = 0, draw: int = 0, split_qkv: bool = True) -> dict[str, Tensor]:
    model = model_of(decoder, seed=seed)
    initialise(model, torch.Generator().manual_seed(draw), split_qkv=split_qkv)
    return dict(model.named_parameters())


def projections(model: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            yield name, module


@pytest.mark.parametrize("split_qkv", [True, False])
@pytest.mark.parametrize("decoder", ["cascaded", "joint"])
def test_projections_have_the_range_of_xavier_uniform(decoder: str, split_qkv: bool) -> None:
    weights, seen = drawn(decoder, split_qkv=split_qkv), set()
    for name, _ in projections(model_of(decoder)):
        weight = weights[f"{name}.weight"]
        kind = name.rpartition(".")[2]
        parts = {"qkv": 3, "kv": 2}.get(kind, 1) if split_qkv else 1
        bound = math.sqrt(6 / (weight[0].numel() + len(weight) // parts))
        largest = float(weight.detach().abs().max())
        assert 0.99 * bound < largest <= bound * (1 + 1e-6), name
        assert float(weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.05), name
        assert abs(float(weight.detach().mean())) < 0.05 * bound, name
        seen.add(kind)
    assert seen >= {"qkv", "proj", "fc1", "fc2", "project", "rgb"} | ({"kv", "q"} if decoder == "cascaded" else set())


def test_split_qkv_matrices_have_the_range_of_their_parts() -> None:
    attention = CrossAttention(64, 2)
    initialise(attention, torch.Generator().manual_seed(0))
    alone = nn.init.xavier_uniform_(torch.empty(64, 64), generator=torch.Generator().manual_seed(1))
    for matrix in (attention.q.weight, *attention.kv.weight.chunk(2)):
        assert float(matrix.detach().abs().max()) == pytest.approx(float(alone.abs().max()), rel=0.01)


def test_a_patch_projection_is_initialised_as_one_matrix() -> None:
    """As in MAE: Xavier initialisation of a convolution would count the cells of the kernel twice."""
    weight = drawn()["embeddings.rgb.proj.weight"].detach()
    assert weight.shape == (64, 3, 16, 16)
    expected = nn.init.xavier_uniform_(torch.empty(64, 768), generator=torch.Generator().manual_seed(1))
    assert float(weight.abs().max()) == pytest.approx(float(expected.abs().max()), rel=0.01)


@pytest.mark.parametrize("decoder", list(DECODERS))
def test_tokens_are_small_biases_zero_and_norms_one(decoder: str) -> None:
    weights = drawn(decoder)
    matrices = {f"{name}.weight" for name, _ in projections(model_of(decoder))}
    groups: dict[str, list[Tensor]] = {}
    for name, weight in weights.items():
        values = weight.detach()
        if name.endswith(TOKENS):
            groups.setdefault(next(kind for kind in TOKENS if name.endswith(kind)), []).append(values.flatten())
        elif name.endswith(".bias"):
            assert not values.any(), name
        elif name.endswith("gamma"):
            assert torch.equal(values, torch.full_like(values, SCALE)), name
        elif name not in matrices:
            assert "norm" in name
            assert torch.equal(values, torch.ones_like(values)), name
    assert set(groups) == {name for name in TOKENS if name != "granularity" or decoder != "direct"}
    for kind, values_of_kind in groups.items():
        values = torch.cat(values_of_kind)
        assert float(values.std()) == pytest.approx(0.02, rel=0.3 if len(values) < 500 else 0.1), kind
        assert abs(float(values.mean())) < 0.006, kind


@pytest.mark.parametrize("decoder", list(DECODERS))
def test_the_same_generator_seed_gives_the_same_weights(decoder: str) -> None:
    """All weights are overwritten, however the libraries initialised them."""
    first, second = drawn(decoder, seed=1), drawn(decoder, seed=2)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_other_seeds_give_other_weights() -> None:
    first, second = drawn(draw=1), drawn(draw=2)
    for name in first:
        is_constant = name.endswith((".bias", "gamma")) or "norm" in name
        assert torch.equal(first[name], second[name]) == is_constant, name


def test_initialise_does_not_use_the_global_generator() -> None:
    model = model_of()
    before = torch.get_rng_state()
    initialise(model, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_equal_modules_get_different_weights() -> None:
    weights = drawn()
    for first, second in (("semantic", "instance"), ("instance", "rgb")):
        for part in ("first.attn.q.weight", "rest.0.attn.qkv.weight"):
            assert not torch.equal(
                weights[f"decoder.stages.{first}.{part}"], weights[f"decoder.stages.{second}.{part}"]
            )
        assert not torch.equal(weights[f"heads.{first}.weight"], weights[f"heads.{second}.weight"])


def test_weights_stay_trainable() -> None:
    assert all(weight.requires_grad and weight.is_leaf for weight in drawn().values())


def test_heads_are_initialised_as_in_dino() -> None:
    head = nn.ModuleList([PrototypeHead(64, hidden=64, bottleneck=32, prototypes=96), MLPHead(64, 64, 32, depth=2)])
    initialise_heads(head, torch.Generator().manual_seed(0))
    first = {name: parameter.detach().clone() for name, parameter in head.named_parameters()}
    initialise_heads(head, torch.Generator().manual_seed(0))
    for name, parameter in head.named_parameters():
        weight = parameter.detach()
        assert torch.equal(weight, first[name])
        if name.endswith("bias"):
            assert not weight.any()
        elif weight.ndim == 1:  # of a norm
            assert torch.equal(weight, torch.ones_like(weight))
        else:
            assert float(weight.std()) == pytest.approx(0.02, rel=0.06), name


def test_outputs_to_the_residual_stream_are_smaller_in_deeper_blocks() -> None:
    vit = create_timm_vit("test_vit", img_size=(32, 48), depth=3)
    before = {name: parameter.detach().clone() for name, parameter in vit.blocks.named_parameters()}
    rescale_residual_outputs(vit.blocks)
    for name, parameter in vit.blocks.named_parameters():
        is_scaled = name.endswith(("attn.proj.weight", "mlp.fc2.weight"))
        factor = math.sqrt(2 * (int(name[0]) + 1)) if is_scaled else 1
        torch.testing.assert_close(parameter.detach() * factor, before[name], msg=name)
