"""Pooling of tokens: as in timm after the last block, and without its norm after other blocks."""

import pytest
import torch

from c2fmae.core.errors import UserError
from c2fmae.models.backbones.timm_reader import spec_from_vit
from c2fmae.models.encoder import create_vit
from tests.exports.noise_sources import draw_noise_images, make_noise_backbone

pytestmark = pytest.mark.numeric


def test_the_norm_after_pooling_is_applied_to_the_last_block_only() -> None:
    backbone = make_noise_backbone(has_fc_norm=True)
    first, last = backbone.get_intermediate_layers(backbone.standardise(draw_noise_images((32, 32))), (1, 2))
    mean = last[:, backbone.num_prefix_tokens :].mean(dim=1)
    assert torch.equal(backbone.pool(last), backbone.fc_norm(mean))
    assert torch.equal(backbone.pool(last, depth=2), backbone.pool(last))
    assert not torch.equal(backbone.pool(last), mean)
    assert torch.equal(backbone.pool(first, depth=1), first[:, backbone.num_prefix_tokens :].mean(dim=1))
    assert torch.equal(backbone.pool(first, "cls", depth=1), first[:, 0])


def test_a_register_is_not_used_as_class_token() -> None:
    backbone = make_noise_backbone("test_vit2")
    assert backbone.num_prefix_tokens == 1
    tokens = backbone.tokens(backbone.standardise(draw_noise_images((32, 32))))
    assert torch.equal(backbone.pool(tokens), tokens[:, 1:].mean(dim=1))
    with pytest.raises(UserError) as caught:
        backbone.pool(tokens, "cls")
    assert str(caught.value) == "pooling: this backbone has no class token. Use pooling='mean'"
    vit = create_vit("test_vit2", image_size=None, fc_norm=None)
    vit.global_pool = "token"
    assert spec_from_vit(vit, "test_vit2").pool == "mean"


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "uint8 (2, 3, 32, 32)"),
        (torch.zeros(2, 4, 32, 32), "float32 (2, 4, 32, 32)"),
        (torch.zeros(3, 32, 32), "float32 (3, 32, 32)"),
    ],
)
def test_images_of_wrong_type_or_shape_are_rejected(images: torch.Tensor, got: str) -> None:
    backbone = make_noise_backbone()
    with pytest.raises(UserError) as caught:
        backbone.tokens({"rgb": images})
    expected = "expected a floating-point tensor [batch, 3, height, width]"
    assert str(caught.value) == f"images: {expected}, got {got}. Use Backbone.standardise"


def test_grey_images_are_repeated_for_three_channels_and_others_are_refused() -> None:
    backbone = make_noise_backbone()
    grey = draw_noise_images((32, 32))[:, :1]
    assert torch.equal(backbone.standardise(grey), backbone.standardise(grey.expand(-1, 3, -1, -1)))
    with pytest.raises(UserError, match=r"^images: expected 3 channels, as the ViT was trained on, got 5\. Use images"):
        backbone.standardise(grey.expand(-1, 5, -1, -1))
