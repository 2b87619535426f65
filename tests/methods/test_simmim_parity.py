"""Parity of SimMIM with ViTForMaskedImageModeling of transformers: the same results from the same weights."""

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from c2fmae.core.masks import Masks
from c2fmae.methods import METHODS
from tests.methods.official_positions import official_sincos_table
from tests.methods.test_mae_parity import BLOCK_MODULES
from tests.methods.tiny_methods import build_tiny_method, draw_noise_scenes, perturb_parameters

pytestmark = pytest.mark.numeric

PATCH, SIZE, BATCH = 16, (64, 64), 3
MODULES = {
    "vit.embeddings.patch_embeddings.projection": "embeddings.rgb.proj",
    "vit.layernorm": "encoder.norm",
}


def convert_names(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights or gradients under our names; their head orders pixels by channel, ours by place."""
    ours = {
        "mask_token": theirs["vit.embeddings.mask_token"].flatten(),
        "encoder.cls_token": theirs["vit.embeddings.cls_token"],
    }
    modules = dict(MODULES)
    for index in range(6):
        old, new = f"vit.layers.{index}", f"encoder.blocks.{index}"
        modules |= {f"{old}.{inner}": f"{new}.{renamed}" for inner, renamed in BLOCK_MODULES.items()}
        for kind in ("weight", "bias"):
            parts = [theirs[f"{old}.attention.{letter}_proj.{kind}"] for letter in "qkv"]
            ours[f"{new}.attn.qkv.{kind}"] = torch.cat(parts)
    ours |= {f"{new}.{kind}": theirs[f"{old}.{kind}"] for old, new in modules.items() for kind in ("weight", "bias")}
    for kind in ("weight", "bias"):
        rows = theirs[f"decoder.0.{kind}"].flatten(1) if kind == "weight" else theirs["decoder.0.bias"]
        ours[f"heads.rgb.{kind}"] = rows.unflatten(0, (3, -1)).transpose(0, 1).flatten(0, 1)
    return ours


def test_reconstruction_loss_and_gradients_equal_transformers() -> None:
    from transformers import ViTConfig, ViTForMaskedImageModeling

    with torch.random.fork_rng():
        theirs = ViTForMaskedImageModeling(
            ViTConfig(
                hidden_size=64,
                num_hidden_layers=6,
                num_attention_heads=2,
                intermediate_size=192,
                image_size=SIZE[0],
                patch_size=PATCH,
                encoder_stride=PATCH,
                layer_norm_eps=1e-6,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )
    perturb_parameters(theirs)
    table = F.pad(official_sincos_table((4, 4), 64), (0, 0, 1, 0)).unsqueeze(0)
    theirs.vit.embeddings.position_embeddings = nn.Parameter(table, requires_grad=False)
    method = build_tiny_method("simmim", size=SIZE)
    method.model.load_state_dict(convert_names(theirs.state_dict()))

    scenes = draw_noise_scenes(BATCH, SIZE)
    masks = method.sample_masks(scenes, progress=0.0, generator=torch.Generator().manual_seed(0))
    maps = method.prepare_inputs(scenes)
    expected = theirs(maps["rgb"], bool_masked_pos=masks.is_masked[:, 0])
    expected.loss.backward()
    predictions = method.model(maps, masks)
    loss = method.compute_loss(predictions, maps, masks)
    loss.total.backward()

    pixels = method.objectives["rgb"].target.predictions_to_maps(predictions["rgb"], maps["rgb"])
    torch.testing.assert_close(pixels, expected.reconstruction, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss.total, expected.loss, atol=1e-5, rtol=1e-5)
    named = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    expected_gradients = convert_names(named)
    gradients = {name: p.grad for name, p in method.model.named_parameters()}
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-5, rtol=1e-5, msg=name)


def test_hidden_patches_do_not_reach_the_encoder() -> None:
    """The mask token takes the place of the projected patch, of which not even a bias is left."""
    method, scenes = build_tiny_method("simmim", size=SIZE), draw_noise_scenes(BATCH, SIZE)
    masks = method.sample_masks(scenes, progress=0.0, generator=torch.Generator().manual_seed(0))
    maps = method.prepare_inputs(scenes)
    hidden = masks.is_masked.unflatten(2, (4, 4)).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    changed = {"rgb": torch.where(hidden, torch.nan, maps["rgb"])}
    assert torch.equal(method.model(changed, masks)["rgb"], method.model(maps, masks)["rgb"])
    shown = Masks.from_visible_granularities(["rgb"], ["rgb"], batch=BATCH, num_patches=16)
    assert not torch.equal(method.model(maps, shown)["rgb"], method.model(maps, masks)["rgb"])


@pytest.mark.parametrize(("name", "num_hidden"), [("simmim", 120), ("maskfeat", 78)])
def test_as_many_patches_are_hidden_as_in_the_papers(name: str, num_hidden: int) -> None:
    """SimMIM hides 30 of 49 squares of 2×2 patches, and MaskFeat 78 patches."""
    method = build_tiny_method(name, f"num_visible={METHODS.get(name)().num_visible}", size=(224, 224))
    scenes = draw_noise_scenes(BATCH, (224, 224))
    masks = method.sample_masks(scenes, progress=0.0, generator=torch.Generator().manual_seed(0))
    assert masks.num_masked.tolist() == [[num_hidden]] * BATCH
    if name == "simmim":
        squares = masks.is_masked.view(BATCH, 7, 2, 7, 2).float().mean(dim=(2, 4))
        assert squares.unique().tolist() == [0, 1]
