import copy
from typing import Any, NamedTuple

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from c2fmae.core.errors import UserError
from c2fmae.models import (
    Embeddings,
    Encoder,
    IdEmbedding,
    ImageEmbedding,
    MultiGranularAutoencoder,
    create_vit,
    sincos_positions,
)
from tests.models.tiny_models import create_timm_vit, draw_normal, make_tiny_vit, randomise_parameters

pytestmark = pytest.mark.numeric


class Model(NamedTuple):
    name: str
    size: tuple[int, int] = (32, 48)
    depth: int = 2
    registers: int | None = None
    """The depth, if it is not that of the named ViT."""


MODELS = {
    "global token": Model("vit_tiny_patch16_224", (64, 64)),
    "patches of 14": Model("vit_huge_patch14_224", (28, 42), 1),
    "registers without position": Model("vit_medium_patch16_reg4_gap_256"),
    "registers with positions": Model("test_vit2"),
    "registers and global token with positions": Model("test_vit", registers=3),
    "global token without position": Model("deit3_small_patch16_224"),
    "global token without position, registers": Model("vit_small_patch14_reg4_dinov2", (28, 42)),
    "no global token": Model("vit_base_patch16_siglip_224", depth=1),
    "a norm before the blocks": Model("vit_base_patch16_clip_224", depth=1),
    "blocks of its own kind": Model("vit_base_patch16_rpn_224", depth=1),
    "a norm of patches": Model("aimv2_large_patch14_224", (28, 42), 1),
}


def create_random_vit(model: Model, **options: Any) -> VisionTransformer:
    """A plain ViT of timm with random tokens, positions and layer scales."""
    if model.registers is not None:
        options["reg_tokens"] = model.registers
    return randomise_parameters(
        create_timm_vit(model.name, img_size=model.size, depth=model.depth, **options), std=0.05
    ).eval()


def wrap(vit: VisionTransformer, **options: Any) -> MultiGranularAutoencoder:
    encoder = Encoder(vit, **options)
    return MultiGranularAutoencoder(
        Embeddings({"rgb": ImageEmbedding(vit.patch_embed)}), encoder, nn.Identity(), {}
    ).eval()


def assert_same(actual: Tensor, expected: Tensor) -> None:
    scale = float(expected.abs().max())
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_encode_equals_forward_features_of_timm(model: Model) -> None:
    vit, images = create_random_vit(model), draw_normal(2, 3, *model.size)
    with torch.no_grad():
        expected = vit.forward_features(images)
        found = wrap(vit, use_vit_positions=True).encode(images)
        assert_same(found, expected)
        assert_same(vit.forward_features(images), expected)  # an encoder shares weights and does not move them


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_patch16_224"])
def test_vits_of_full_size_agree_to_1e_5(name: str) -> None:
    torch.manual_seed(0)
    vit, images = timm.create_model(name, num_classes=0).eval().double(), draw_normal(1, 3, 224, 224).double()
    assert isinstance(vit, VisionTransformer)
    with torch.no_grad():
        expected = vit.forward_features(images)
        torch.testing.assert_close(wrap(vit, use_vit_positions=True).encode(images), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["test_vit2", "deit3_small_patch16_224", "vit_base_patch16_siglip_224"])
def test_stored_positions_are_resized_as_timm_does(name: str) -> None:
    vit, images = create_random_vit(Model(name, (64, 64), 1), dynamic_img_size=True), draw_normal(2, 3, 48, 80)
    with torch.no_grad():
        assert_same(wrap(vit, use_vit_positions=True).encode(images), vit.forward_features(images))


def test_positions_without_a_table_are_sines_and_cosines() -> None:
    vit = make_tiny_vit(img_size=(32, 48))
    ours = wrap(copy.deepcopy(vit))
    assert vit.pos_embed is not None
    with torch.no_grad():
        vit.pos_embed[0, :1] = 0
        vit.pos_embed[0, 1:] = sincos_positions((2, 3), 64)
        images = draw_normal(2, 3, 32, 48)
        assert_same(ours.encode(images), vit.eval().forward_features(images))
    stretched = sincos_positions((5, 2), 64, trained_grid=(2, 3))
    assert torch.equal(ours.encoder.positions((5, 2), torch.device("cpu")), stretched)


def test_an_encoder_without_norm_returns_the_output_of_its_blocks() -> None:
    vit, images = make_tiny_vit(), draw_normal(2, 3, 32, 48)
    with torch.no_grad():
        without = wrap(vit, has_norm=False).encode(images)
        assert_same(vit.norm(without), wrap(vit).encode(images))
    assert not [name for name, _ in Encoder(vit, has_norm=False).named_parameters() if name.startswith("norm.")]


def test_an_encoder_shares_the_weights_of_its_vit() -> None:
    vit = make_tiny_vit()
    encoder = Encoder(vit)
    theirs = dict(vit.named_parameters())
    assert all(parameter is theirs[name] for name, parameter in encoder.named_parameters())
    assert theirs.keys() - dict(encoder.named_parameters()).keys() == {
        "pos_embed",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
    }


def test_a_stored_position_table_is_saved_and_not_trained() -> None:
    encoder = Encoder(make_tiny_vit(), use_vit_positions=True)
    assert "pos_embed" in encoder.state_dict()
    assert "pos_embed" not in dict(encoder.named_parameters())
    assert "pos_embed" not in Encoder(make_tiny_vit()).state_dict()


def test_rgb_in_a_model_of_more_granularities_equals_timm() -> None:
    vit, images = make_tiny_vit(), draw_normal(2, 3, 32, 48)
    embeddings = Embeddings(
        {"semantic": IdEmbedding(5, 64, patch=16), "rgb": ImageEmbedding(vit.patch_embed), "instance": nn.Identity()}
    )
    ours = MultiGranularAutoencoder(embeddings, Encoder(vit, use_vit_positions=True), nn.Identity(), {}).eval()
    with torch.no_grad():
        assert_same(ours.encode(images), vit.eval().forward_features(images))


def test_recomputed_blocks_have_the_same_gradients() -> None:
    tokens = draw_normal(2, 5, 64)
    gradients, runs = [], []
    for checkpoint in (False, True):
        vit = make_tiny_vit()
        encoder = Encoder(vit, grad_checkpointing=checkpoint).train()
        calls: list[object] = []
        vit.blocks[0].register_forward_pre_hook(lambda *call, calls=calls: calls.append(call))
        inputs = tokens.clone().requires_grad_()
        (encoder(inputs) * draw_normal(2, 6, 64, seed=1)).sum().backward()
        gradients.append([inputs.grad, *(parameter.grad for parameter in encoder.parameters())])
        runs.append(len(calls))
    assert runs == [1, 2]
    for stored, recomputed in zip(*gradients, strict=True):
        assert stored is not None
        assert recomputed is not None
        torch.testing.assert_close(recomputed, stored, rtol=1e-6, atol=1e-6)


def test_nothing_is_recomputed_in_evaluation() -> None:
    vit = make_tiny_vit()
    calls: list[object] = []
    vit.blocks[0].register_forward_pre_hook(lambda *call: calls.append(call))
    Encoder(vit, grad_checkpointing=True).eval()(draw_normal(2, 5, 64)).sum().backward()
    assert len(calls) == 1


def test_drop_path_acts_in_training_only() -> None:
    vit, plain = make_tiny_vit(drop_path_rate=0.5), make_tiny_vit()
    tokens = draw_normal(8, 5, 64)
    torch.manual_seed(0)
    with torch.no_grad():
        expected = Encoder(plain).eval()(tokens)
        assert torch.equal(Encoder(plain).train()(tokens), expected)
        assert torch.equal(Encoder(vit).eval()(tokens), expected)
        encoder = Encoder(vit).train()
        assert not torch.equal(encoder(tokens), encoder(tokens))


def test_create_vit_sets_image_size_channels_and_drop_path() -> None:
    vit = create_vit("test_vit", image_size=(32, 64), channels=5, drop_path=0.5)
    assert vit.patch_embed.grid_size == (2, 4)
    assert vit.patch_embed.proj.weight.shape[1] == 5
    assert isinstance(vit.head, nn.Identity)
    blocks: list[Any] = list(vit.blocks)
    assert [block.drop_path1.drop_prob for block in blocks[1:]] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_create_vit_overrides_the_shape_of_the_named_vit() -> None:
    vit = create_vit("vit_tiny_patch16_224", image_size=(32, 32), patch_size=8, embed_dim=64, depth=2, num_heads=4)
    assert (vit.patch_embed.grid_size, vit.embed_dim, len(vit.blocks)) == ((4, 4), 64, 2)
    with pytest.raises(UserError) as caught:
        create_vit("vit_tiny_patch16_224", image_size=(32, 32), embed_dim=64, num_heads=3)
    shape = "{'embed_dim': 64, 'num_heads': 3}"
    expected = f"encoder: 'vit_tiny_patch16_224' does not accept {shape}: dim should be divisible by num_heads"
    assert str(caught.value) == f"{expected}. Change these options"


@pytest.mark.parametrize("name", ["test_vit", "vit_wee_patch16_reg1_gap_256"])
def test_create_vit_places_the_norm_before_pooling(name: str) -> None:
    vit = create_vit(name, image_size=(32, 32))
    assert isinstance(vit.norm, nn.LayerNorm)
    assert isinstance(vit.fc_norm, nn.Identity)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("vit_bse_patch16_224", "Did you mean 'vit_base_patch16_224'?"),
        ("qqqq", "See timm.list_models()"),
    ],
)
def test_an_unknown_encoder_suggests_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        create_vit(name, image_size=(32, 32))
    assert str(caught.value) == f"encoder: timm has no model named {name!r}. {hint}"


@pytest.mark.parametrize(
    "name",
    ["eva02_tiny_patch14_224", "deit_tiny_distilled_patch16_224", "vit_tiny_r_s16_p8_224", "resnet18", "convnext_atto"],
)
def test_models_that_are_not_plain_vits_are_rejected(name: str) -> None:
    shapes: list[dict[str, Any]] = [{}, {"depth": 2}]  # an argument that other models do not have
    for shape in shapes:
        with pytest.raises(UserError) as caught:
            create_vit(name, image_size=(32, 32), **shape)
        assert str(caught.value) == f"encoder: {name!r} is not a plain ViT. Use one such as vit_base_patch16_224"
