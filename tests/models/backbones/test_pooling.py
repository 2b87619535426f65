"""Tokens to one vector: by timm's rules behind the last block, and without what was learned there behind others."""

import pytest
import torch

from c2fmae.core.errors import UserError
from c2fmae.models.backbones.timm_reader import spec_from_vit
from c2fmae.models.encoder import create_vit
from tests.exports.noise_sources import draw_noise_images, make_noise_backbone


def test_a_norm_behind_the_pooling_is_for_the_last_block_alone() -> None:
    backbone = make_noise_backbone(has_fc_norm=True)
    first, last = backbone.get_intermediate_layers(backbone.standardise(draw_noise_images((32, 32))), (1, 2))
    mean = last[:, backbone.num_prefix_tokens :].mean(dim=1)
    assert torch.equal(backbone.pool(last), backbone.fc_norm(mean))
    assert torch.equal(backbone.pool(last, depth=2), backbone.pool(last))
    assert not torch.equal(backbone.pool(last), mean)
    assert torch.equal(backbone.pool(first, depth=1), first[:, backbone.num_prefix_tokens :].mean(dim=1))
    assert torch.equal(backbone.pool(first, "cls", depth=1), first[:, 0])


def test_a_register_is_no_global_token() -> None:
    backbone = make_noise_backbone("test_vit2")
    assert backbone.num_prefix_tokens == 1
    tokens = backbone.tokens(backbone.standardise(draw_noise_images((32, 32))))
    assert torch.equal(backbone.pool(tokens), tokens[:, 1:].mean(dim=1))
    with pytest.raises(UserError) as caught:
        backbone.pool(tokens, "cls")
    assert str(caught.value) == "this backbone has no global token. Pool by the mean"
    vit = create_vit("test_vit2", image_size=None, fc_norm=None)
    vit.global_pool = "token"
    assert spec_from_vit(vit, "test_vit2").pool == "mean"


@pytest.mark.parametrize(
    ("photos", "got"),
    [
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "uint8 (2, 3, 32, 32)"),
        (torch.zeros(2, 4, 32, 32), "float32 (2, 4, 32, 32)"),
        (torch.zeros(3, 32, 32), "float32 (3, 32, 32)"),
    ],
)
def test_photos_that_it_cannot_take_are_refused_in_words(photos: torch.Tensor, got: str) -> None:
    backbone = make_noise_backbone()
    with pytest.raises(UserError) as caught:
        backbone.tokens({"rgb": photos})
    expected = "expected numbers as `standardise` makes them of bytes, [batch, 3, height, width]"
    assert str(caught.value) == f"photos: {expected}, got {got}"
