"""Parity with ViTMAE of transformers, which loads the official weights: the same results from the same weights."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from c2fmae.core.masks import Masks
from c2fmae.masking import random_mask
from c2fmae.masking.noise import RowGenerator
from c2fmae.methods import METHODS, MaskedAutoencoding, build_method
from c2fmae.methods.branches.method import BranchMethod
from c2fmae.methods.branches.views import ViewBatch
from c2fmae.models import MultiGranularAutoencoder
from c2fmae.models.autoencoder import encode_visible
from tests.methods.official_positions import official_sincos_table
from tests.methods.tiny_methods import build_tiny_method, draw_noise_scenes, perturb_parameters

if TYPE_CHECKING:
    from transformers import ViTMAEForPreTraining

pytestmark = pytest.mark.numeric

PATCH, BATCH = 16, 3

TENSORS = {
    "vit.embeddings.cls_token": "encoder.cls_token",
    "decoder.mask_token": "decoder.entry.mask_token",
}
MODULES = {
    "vit.embeddings.patch_embeddings.projection": "embeddings.rgb.proj",
    "vit.layernorm": "encoder.norm",
    "decoder.decoder_embed": "decoder.entry.project",
    "decoder.decoder_norm": "decoder.norm",
    "decoder.decoder_pred": "heads.rgb",
}
BLOCKS = {"vit.layers": "encoder.blocks", "decoder.decoder_layers": "decoder.blocks"}
BLOCK_MODULES = {
    "attention.o_proj": "attn.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def convert_names(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights or gradients under timm's names, with queries, keys and values in one matrix."""
    ours = {new: theirs[old].view(-1) if "mask" in old else theirs[old] for old, new in TENSORS.items()}
    modules = dict(MODULES)
    for old, new in BLOCKS.items():
        for index in {name.removeprefix(f"{old}.").partition(".")[0] for name in theirs if name.startswith(old)}:
            modules |= {
                f"{old}.{index}.{inner}": f"{new}.{index}.{renamed}" for inner, renamed in BLOCK_MODULES.items()
            }
            for kind in ("weight", "bias"):
                parts = [theirs[f"{old}.{index}.attention.{letter}_proj.{kind}"] for letter in "qkv"]
                ours[f"{new}.{index}.attn.qkv.{kind}"] = torch.cat(parts)
    return ours | {
        f"{new}.{kind}": theirs[f"{old}.{kind}"] for old, new in modules.items() for kind in ("weight", "bias")
    }


def build_vit_mae(size: tuple[int, int], *, is_normalized: bool) -> "ViTMAEForPreTraining":
    """Build the model of transformers in the size of ours, with perturbed weights: none is exactly zero or one."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    with torch.random.fork_rng():
        model = ViTMAEForPreTraining(
            ViTMAEConfig(
                hidden_size=64,
                num_hidden_layers=6,
                num_attention_heads=2,
                intermediate_size=192,
                image_size=64,
                patch_size=PATCH,
                decoder_hidden_size=32,
                decoder_num_hidden_layers=2,
                decoder_num_attention_heads=4,
                decoder_intermediate_size=128,
                layer_norm_eps=1e-6,
                norm_pix_loss=is_normalized,
            )
        )
    perturb_parameters(model)
    grid = (size[0] // PATCH, size[1] // PATCH)  # its tables are for squares only, and the first is not initialised
    model.vit.embeddings.image_size = size
    tables = [F.pad(official_sincos_table(grid, dim), (0, 0, 1, 0)).unsqueeze(0) for dim in (64, 32)]
    model.vit.embeddings.position_embeddings = nn.Parameter(tables[0], requires_grad=False)
    model.decoder.decoder_pos_embed = nn.Parameter(tables[1], requires_grad=False)
    return model


def build_both(
    size: tuple[int, int], *, is_normalized: bool = True
) -> tuple[MaskedAutoencoding, "ViTMAEForPreTraining", dict[str, Tensor], Tensor, Masks]:
    """Return both models with the same weights, the input maps, the masking noise and the masks."""
    target = "normalized_pixels" if is_normalized else "pixels"
    method = build_tiny_method("mae", f"targets.rgb=[{target}]", "decoder.options.depth=2", size=size)
    theirs = build_vit_mae(size, is_normalized=is_normalized)
    method.model.load_state_dict(convert_names(theirs.state_dict()))
    num_patches = size[0] * size[1] // PATCH**2
    noise = torch.rand(BATCH, num_patches, generator=torch.Generator().manual_seed(1))
    num_visible = method.config.resolve_num_visible(num_patches)
    hidden = random_mask(noise, torch.full((BATCH,), num_patches - num_visible))
    masks = Masks.from_mask(hidden.unsqueeze(1), ["rgb"], num_visible=num_visible)
    scenes = draw_noise_scenes(BATCH, size)
    upper = scenes.maps["rgb"][:, :, : size[0] // 2]  # nearly constant, so that the epsilon added to variances matters
    upper.remainder_(2).add_(torch.tensor([124, 116, 104], dtype=torch.uint8).view(3, 1, 1))
    return method, theirs, method.prepare_inputs(scenes), noise, masks


@pytest.mark.parametrize("is_normalized", [True, False], ids=["normalized_pixels", "pixels"])
def test_predictions_loss_and_gradients_equal_transformers(is_normalized: bool) -> None:
    method, theirs, maps, noise, masks = build_both((64, 64), is_normalized=is_normalized)
    expected = theirs(pixel_values=maps["rgb"], noise=noise)
    expected.loss.backward()
    predictions = method.model(maps, masks)
    loss = method.compute_loss(predictions, maps, masks)
    loss.total.backward()

    assert masks.visible_idx.shape == (BATCH, 4)
    assert torch.equal(masks.is_masked[:, 0], expected.mask.bool())
    torch.testing.assert_close(predictions["rgb"], expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss.total, expected.loss, atol=1e-5, rtol=1e-5)
    expected_gradients = convert_names({name: p.grad for name, p in theirs.named_parameters() if p.grad is not None})
    gradients = {name: p.grad for name, p in method.model.named_parameters()}
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-5, rtol=1e-5, msg=name)


def test_predictions_of_a_wide_image_equal_transformers() -> None:
    method, theirs, maps, noise, masks = build_both((64, 96))
    encoded = theirs.vit(maps["rgb"], noise=noise)
    expected = theirs.decoder(encoded.last_hidden_state, encoded.ids_restore).logits
    assert torch.equal(masks.is_masked[:, 0], encoded.mask.bool())
    torch.testing.assert_close(method.model(maps, masks)["rgb"], expected, atol=1e-5, rtol=1e-5)


def test_the_defaults_equal_transformers_vit_base() -> None:
    from transformers import ViTMAEConfig

    ours, theirs = METHODS.get("mae")(), ViTMAEConfig()
    decoder = ours.decoder.options
    assert (decoder.dim, decoder.depth, decoder.num_heads) == (
        theirs.decoder_hidden_size,
        theirs.decoder_num_hidden_layers,
        theirs.decoder_num_attention_heads,
    )
    assert decoder.dim * decoder.mlp_ratio == theirs.decoder_intermediate_size
    assert ours.resolve_num_visible(196) == int(196 * (1 - theirs.mask_ratio))


def test_visible_patches_are_encoded_as_in_transformers() -> None:
    method, theirs, maps, noise, masks = build_both((64, 96))
    assert isinstance(method.model, MultiGranularAutoencoder)
    found, grid = encode_visible(method.model.embeddings, method.model.encoder, maps, masks)
    assert grid == (4, 6)
    order = noise.argsort(dim=1)[:, : masks.visible_idx.shape[1]].argsort(dim=1)  # theirs are in the order of the noise
    expected = theirs.vit(maps["rgb"], noise=noise).last_hidden_state
    torch.testing.assert_close(found[:, :1], expected[:, :1], atol=1e-5, rtol=1e-5)
    patches = expected[:, 1:].gather(1, order.unsqueeze(2).expand(-1, -1, 64))
    torch.testing.assert_close(found[:, 1:], patches, atol=1e-5, rtol=1e-5)


BRANCH_OVERRIDES = [
    *["encoder.name=test_vit", "image_size=[64, 64]", "hidden=16"],
    *["decoder.options.dim=32", "decoder.options.num_heads=4", "decoder.options.depth=2"],
]
OWN_OVERRIDES = {
    "cmae": [
        *["out=8", "mask_unit=1", "mask_ratio=0.75", "contrast_weight=0"],
        *["feature_decoder.options.dim=32", "feature_decoder.options.num_heads=4", "feature_decoder.options.depth=1"],
    ],
    "lut": ["context_weight=0"],
}


@pytest.mark.parametrize("name", OWN_OVERRIDES)
def test_pixel_losses_of_two_branch_methods_equal_transformers(name: str) -> None:
    method = build_method(METHODS.get(name)().override([*BRANCH_OVERRIDES, *OWN_OVERRIDES[name]]), seed=0)
    assert isinstance(method, BranchMethod)
    _, theirs, maps, _, _ = build_both((64, 64))
    noise = RowGenerator(0).draw_uniform(1, range(BATCH), 16)
    expected = theirs(pixel_values=maps["rgb"], noise=noise)
    expected.loss.backward()

    renamed = {"heads.rgb.": "heads.pixels.", "decoder.": "heads.decoder."}

    def convert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        for old, new in renamed.items():
            tensors = {new + key.removeprefix(old) if key.startswith(old) else key: tensors[key] for key in tensors}
        return dict(tensors)

    missing, unexpected = method.model.load_state_dict(convert(convert_names(theirs.state_dict())), strict=False)
    assert unexpected == []
    assert {key.split(".")[1] for key in missing} <= {"feature_decoder", "features", "projector", "predictor"}
    drawn = method.draw_masks(method.config, (4, 4), range(BATCH), RowGenerator(0))
    assert torch.equal(drawn["main"], expected.mask.bool())
    images = maps["rgb"].unsqueeze(1)
    views = {"main": images, **dict.fromkeys(method.config.required_views, images.flip(4))}
    batch = ViewBatch(("image",) * BATCH, views, drawn, 0, BATCH, numbers=method.final_numbers)
    (batch,) = method.add_targets([batch])
    loss = method.average(method.compute_losses(method.model, batch), BATCH)
    loss.total.backward()
    torch.testing.assert_close(loss.total, expected.loss, atol=1e-5, rtol=1e-5)
    gradients = {key: p.grad for key, p in method.model.named_parameters()}
    theirs_by_name = {key: p.grad for key, p in theirs.named_parameters() if p.grad is not None}
    for key, gradient in convert(convert_names(theirs_by_name)).items():
        torch.testing.assert_close(gradients[key], gradient, atol=1e-5, rtol=1e-5, msg=key)
