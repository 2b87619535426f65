import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from c2fmae.core.errors import UserError
from c2fmae.core.masks import Masks
from c2fmae.models import Embeddings, Encoder, ImageEmbedding, MultiGranularAutoencoder
from c2fmae.models.autoencoder import encode_visible
from c2fmae.models.image_encoder import ImageEncoder
from tests.models.tiny_models import create_timm_vit, draw_normal, make_tiny_vit, randomise_parameters

pytestmark = pytest.mark.numeric

NUM_PATCHES = 6
IMAGES = draw_normal(3, 3, 32, 48)
IS_MASKED = torch.tensor([[1, 0, 0, 1, 1, 0], [0] * 6, [1] * 6], dtype=torch.bool)


def make_encoder(vit: Any = None, **options: Any) -> ImageEncoder:
    vit = vit or make_tiny_vit()
    encoder = ImageEncoder(
        Embeddings({"rgb": ImageEmbedding(vit.patch_embed)}), Encoder(vit, use_vit_positions=True), **options
    )
    if encoder.mask_token is not None:
        nn.init.normal_(encoder.mask_token, generator=torch.Generator().manual_seed(1))
    return encoder.eval()


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * float(expected.detach().abs().max()))


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "vit_base_patch16_clip_224"])
def test_latents_equal_forward_features_of_timm(name: str) -> None:
    vit = randomise_parameters(create_timm_vit(name, img_size=(32, 48), depth=2), std=0.05).eval()
    with torch.no_grad():
        expected = vit.forward_features(IMAGES)
        assert_close(make_encoder(vit).encode(IMAGES), expected)
        assert_close(vit.norm(make_encoder(vit).compute_latents(IMAGES, normed=False)), expected)


def test_latents_with_mask_tokens_equal_lightly() -> None:
    modules = pytest.importorskip("lightly.models.modules", reason="lightly is not installed")
    vit, images = make_tiny_vit(reg_tokens=2, img_size=(48, 48)), draw_normal(3, 3, 48, 48)  # theirs are squares
    ours = make_encoder(copy.deepcopy(vit), has_mask_token=True)
    assert ours.mask_token is not None
    token = nn.Parameter(ours.mask_token.detach().view(1, 1, -1))
    options = {"weight_initialization": "skip", "pos_embed_initialization": "skip"}
    theirs = modules.MaskedVisionTransformerTIMM(vit, mask_token=token, **options).eval()
    is_masked = draw_normal(3, 9, seed=1) > 0
    mask = torch.cat([torch.zeros(3, vit.num_prefix_tokens, dtype=torch.bool), is_masked], dim=1)
    found, expected = ours.compute_latents(images, is_masked=is_masked), theirs.encode(images, mask=mask)
    assert_close(found, expected)
    weights = draw_normal(*found.shape, seed=2)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert ours.mask_token.grad is not None
    assert token.grad is not None
    assert_close(ours.mask_token.grad, token.grad.view(-1))
    gradient = dict(ours.named_parameters())["embeddings.rgb.proj.weight"].grad
    assert gradient is not None
    assert vit.patch_embed.proj.weight.grad is not None
    assert_close(gradient, vit.patch_embed.proj.weight.grad)
    visible = torch.tensor([[0, 5], [1, 8], [3, 4]])
    keep = torch.cat([torch.arange(3).expand(3, -1), visible + 3], dim=1)
    hidden = torch.ones_like(is_masked).scatter(1, visible, False)
    masks = Masks.from_mask(hidden.unsqueeze(1), ["rgb"], num_visible=2)
    latents, _ = encode_visible(ours.embeddings, ours.encoder, {"rgb": images}, masks)
    assert_close(latents, theirs.encode(images, idx_keep=keep))


def test_nothing_of_a_hidden_patch_reaches_the_latents() -> None:
    encoder = make_encoder(has_mask_token=True)
    changed = IMAGES.clone()
    changed[0, :, :16, :16] = 7.0
    hidden = torch.zeros(3, NUM_PATCHES, dtype=torch.bool)
    hidden[0, 0] = True
    with torch.no_grad():
        assert torch.equal(
            encoder.compute_latents(changed, is_masked=hidden), encoder.compute_latents(IMAGES, is_masked=hidden)
        )
        assert not torch.equal(encoder.compute_latents(changed), encoder.compute_latents(IMAGES))
        assert torch.equal(
            encoder.compute_latents(IMAGES, is_masked=torch.zeros_like(hidden)), encoder.compute_latents(IMAGES)
        )


@pytest.mark.parametrize("is_masked", [torch.zeros(3, 6, dtype=torch.bool), torch.ones(3, 6, dtype=torch.bool)])
def test_all_parameters_get_a_gradient_whatever_is_hidden(is_masked: Tensor) -> None:
    encoder = make_encoder(has_mask_token=True)
    encoder.compute_latents(IMAGES, is_masked=is_masked).sum().backward()
    assert [name for name, parameter in encoder.named_parameters() if parameter.grad is None] == []


def test_images_of_other_sizes_have_resized_positions() -> None:
    vit = randomise_parameters(
        create_timm_vit("test_vit", img_size=(64, 64), depth=2, dynamic_img_size=True), std=0.05
    ).eval()
    small = draw_normal(2, 3, 32, 48)
    with torch.no_grad():
        assert_close(make_encoder(vit).compute_latents(small), vit.forward_features(small))


@pytest.mark.parametrize("registers", [0, 2])
def test_the_attention_of_the_class_token_equals_that_of_a_hook(registers: int) -> None:
    vit = make_tiny_vit(reg_tokens=registers)
    encoder = make_encoder(vit)
    block: Any = vit.blocks[-1]
    seen: list[Tensor] = []

    def compute_attention(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        attn = block.attn
        q, k, _v = attn.qkv(inputs[0]).unflatten(2, (3, attn.num_heads, -1)).unbind(2)
        seen.append(torch.einsum("bhd,bkhd->bhk", q[:, 0] * attn.head_dim**-0.5, k).softmax(dim=2))

    block.attn.register_forward_pre_hook(compute_attention)
    with torch.no_grad():
        latents, attention = encoder.forward_with_cls_attention(IMAGES)
        assert torch.equal(latents, encoder.compute_latents(IMAGES))
    assert attention.shape == (3, block.attn.num_heads, NUM_PATCHES)
    assert_close(attention, seen[0][:, :, 1 + registers :])


def test_the_attention_has_full_precision_under_autocast() -> None:
    encoder = make_encoder(make_tiny_vit())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        _, attention = encoder.forward_with_cls_attention(IMAGES)
    assert attention.dtype == torch.float32
    assert (attention.bfloat16() != attention).any()  # otherwise many patches have the same attention


def test_unreadable_attention_is_refused() -> None:
    with pytest.raises(UserError, match=r"^encoder: the attention of this ViT cannot be read. Use one such as "):
        make_encoder(make_tiny_vit(class_token=False, global_pool="avg")).forward_with_cls_attention(IMAGES)


def test_a_frozen_patch_projection_is_saved_and_not_trained() -> None:
    encoder = make_encoder(freezes_patch_projection=True)
    assert {name for name, p in encoder.named_parameters() if not p.requires_grad} == {
        "embeddings.rgb.proj.weight",
        "embeddings.rgb.proj.bias",
    }
    assert "embeddings.rgb.proj.weight" in encoder.state_dict()
    encoder.compute_latents(IMAGES).sum().backward()
    assert dict(encoder.named_parameters())["embeddings.rgb.proj.weight"].grad is None


def test_parts_have_the_names_and_layers_of_the_autoencoder() -> None:
    vit = make_tiny_vit()
    ours = make_encoder(vit, has_mask_token=True)
    autoencoder = MultiGranularAutoencoder(ours.embeddings, ours.encoder, nn.Identity(), {})
    assert ours.state_dict().keys() - autoencoder.state_dict().keys() == {"mask_token"}
    assert autoencoder.state_dict().keys() <= ours.state_dict().keys()
    for own, theirs in zip(ours.trunk_layers(), autoencoder.trunk_layers(), strict=True):
        assert [id(each) for each in own] == [id(each) for each in theirs]
    assert ours.sharding_units() == autoencoder.sharding_units()


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^is_masked: this encoder has no mask token"):
        make_encoder().compute_latents(IMAGES, is_masked=IS_MASKED)
    with pytest.raises(ValueError, match=r"^embeddings: expected rgb alone, got semantic$"):
        ImageEncoder(Embeddings({"semantic": nn.Identity()}), Encoder(make_tiny_vit()))


@pytest.mark.unchecked
def test_masks_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^is_masked: expected 3×6 \(batch×patches\), got 1×6$"):
        make_encoder(has_mask_token=True).compute_latents(IMAGES, is_masked=IS_MASKED[:1])
