"""Feature maps of blocks: with and without the last norm, of images of any size, with recomputed blocks."""

import pytest
import torch
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.specs import BackboneSpec, EncoderConfig
from c2fmae.models.backbones import Backbone
from c2fmae.models.backbones.backbone import vit_from_spec, wrap_vit
from tests.exports.noise_sources import draw_noise_images, make_noise_backbone
from tests.models.tiny_models import draw_input_maps, randomise_parameters

pytestmark = pytest.mark.numeric


def make_backbone_of_maps() -> Backbone:
    spec = BackboneSpec(
        encoder=EncoderConfig(name="test_vit", depth=1), image_size=(32, 48), channels={"semantic": 5, "rgb": 3}
    )
    return randomise_parameters(wrap_vit(vit_from_spec(spec), spec), std=0.1)


def test_the_last_block_is_raw_without_norm() -> None:
    backbone = make_noise_backbone()
    images = backbone.standardise(draw_noise_images((32, 48)))
    with torch.no_grad():
        first, normed = backbone.feature_maps(images, (1, 2))
        same_first, raw = backbone.feature_maps(images, (1, 2), normed=False)
        assert torch.equal(first, same_first)
        assert torch.equal(backbone.encoder.norm(raw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), normed)
        assert torch.equal(normed.flatten(2).transpose(1, 2), backbone.tokens(images)[:, backbone.num_prefix_tokens :])
    assert not torch.equal(raw, normed)


def test_images_of_any_size_are_padded_with_the_mean_colour() -> None:
    backbone = make_noise_backbone()
    images = backbone.standardise(draw_noise_images((30, 33)))
    padded = images.new_zeros(len(images), 3, 32, 48)
    padded[:, :, :30, :33] = images
    with torch.no_grad():
        (features,), (expected,) = (backbone.feature_maps(batch, [1]) for batch in (images, padded))
    assert torch.equal(features, expected)
    with pytest.raises(UserError, match=r"^rgb: 30×33 is not divisible"):  # means of tokens would include the padding
        backbone.tokens(images)


def test_id_maps_are_padded_as_unlabelled() -> None:
    backbone = make_backbone_of_maps()
    maps = draw_input_maps(("semantic", "rgb"), classes=5)
    maps["rgb"][:, :, 30:] = 0
    maps["semantic"][:, 7:] = 255
    cut = {"rgb": maps["rgb"][:, :, :30], "semantic": maps["semantic"][:, :7]}
    with torch.no_grad():
        for name in maps:
            (features,), (expected,) = (backbone.feature_maps(each, [1], name) for each in (cut, maps))
            assert torch.equal(features, expected)


def compute_gradients(backbone: Backbone, images: Tensor) -> tuple[list[Tensor | None], int]:
    """The gradients of the embeddings and blocks, and how often the first block was computed."""
    calls: list[object] = []
    hook = backbone.encoder.blocks[0].register_forward_pre_hook(lambda *call: calls.append(call))
    backbone.zero_grad()
    first, last = backbone.feature_maps(images, [1, 2], normed=False)
    (first.sin() + last.cos()).sum().backward()
    hook.remove()
    return [parameter.grad for layer in backbone.trunk_layers() for parameter in layer], len(calls)


def test_blocks_are_recomputed_in_training_only() -> None:
    backbone = make_noise_backbone()
    images = backbone.standardise(draw_noise_images((32, 32)))
    stored, calls = compute_gradients(backbone.train(), images)
    assert calls == 1
    backbone.encoder.grad_checkpointing = True
    recomputed, calls = compute_gradients(backbone, images)
    assert calls == 2
    assert compute_gradients(backbone.eval(), images)[1] == 1
    for ours, theirs in zip(recomputed, stored, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
