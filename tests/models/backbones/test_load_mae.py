"""Files of MAE's official code: the same features as an independent implementation, and rejected files."""

import argparse
import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.models.backbones import Backbone, load_backbone
from tests.models.backbones.official_mae import mae_tokens, mae_weights, norm, sincos_table

pytestmark = pytest.mark.numeric


def loaded(weights: dict[str, Tensor], tmp_path: Path, **options: object) -> Backbone:
    torch.save({"model": weights}, tmp_path / "mae.pth")
    return load_backbone(tmp_path / "mae.pth", **options)  # type: ignore[arg-type]


def refused(weights: dict[str, Tensor], tmp_path: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        loaded(weights, tmp_path, **options)
    return str(caught.value).removeprefix(f"{tmp_path / 'mae.pth'}: ")


def images(height: int = 64, width: int = 64, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1))


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "heads"),
    [
        ({"width": 128}, 2),
        ({"width": 192, "depth": 1}, 3),
        ({"width": 128, "decoder": None}, 2),
        ({"width": 64, "ratio": 3, "patch": 8, "side": 32}, 1),
        ({"width": 64, "ratio": 8 / 3, "channels": 5}, 1),
    ],
)
def test_a_pretrained_file_gives_the_features_of_the_original_mae_encoder(
    sizes: dict[str, int], heads: int, tmp_path: Path
) -> None:
    weights = mae_weights(**sizes)  # type: ignore[arg-type]
    backbone = loaded(weights, tmp_path)
    seen = images(sizes.get("side", 64), sizes.get("side", 64), sizes.get("channels", 3))
    with torch.no_grad():
        same(backbone.tokens(seen), mae_tokens(weights, seen, heads))
        same(backbone.pooled(seen), mae_tokens(weights, seen, heads)[:, 1:].mean(dim=1))
    assert not backbone.spec.encoder.keep_positions


def test_a_finetuned_file_has_its_norm_after_pooling_and_its_head_is_unused(tmp_path: Path) -> None:
    weights = mae_weights(is_finetuned=True)
    backbone = loaded(weights, tmp_path)
    with torch.no_grad():
        tokens = mae_tokens(weights, images(), 2)
        same(backbone.tokens(images()), tokens)
        same(backbone.pooled(images()), norm(weights, "fc_norm", tokens[:, 1:].mean(dim=1)))
    assert backbone.load_report.unused == {"head": 2}
    assert not backbone.load_report.missing


def test_a_classifier_on_the_class_token_pools_by_it(tmp_path: Path) -> None:
    weights = mae_weights(decoder=None)
    weights |= {"head.weight": torch.ones(10, 128), "head.bias": torch.ones(10)}
    backbone = loaded(weights, tmp_path)
    with torch.no_grad():
        same(backbone.pooled(images()), mae_tokens(weights, images(), 2)[:, 0])


def test_a_training_checkpoint_with_prefixes_is_read_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = mae_weights()
    path = tmp_path / "checkpoint.pth"
    content = {f"module._orig_mod.{name}": each.half() for name, each in weights.items()}
    torch.save({"model": content, "args": argparse.Namespace(lr=1e-3), "epoch": 1}, path)
    with caplog.at_level(logging.INFO, "c2fmae"):
        backbone = load_backbone(path)
    with torch.no_grad():
        found = backbone.tokens(images())
    rounded = {name: each.half().float() for name, each in weights.items()}
    rounded["pos_embed"] = weights["pos_embed"]  # sines and cosines are computed in float32, whatever the file's type
    same(found, mae_tokens(rounded, images(), 2))
    report = backbone.load_report
    assert report.unused == {
        "mask_token": 1, "decoder_embed": 2, "decoder_pos_embed": 1, "decoder_blocks": 24, "decoder_norm": 2,
        "decoder_pred": 2,
    }  # fmt: skip
    assert len(report.loaded) == len(weights) - sum(report.unused.values())
    assert str(report) in caplog.text
    assert str(report).splitlines()[2:] == [
        "  loaded from its 'model'; it also contains args, epoch",
        "  the number of attention heads is not stored: 2 are assumed, one per 64 channels of width 128 "
        "(set num_heads)",
        "  its positions are sines and cosines, which are stretched to any image size",
        "  29 tensors of float16 were cast to the dtype of the model",
    ]


def test_the_number_of_attention_heads_can_be_set(tmp_path: Path) -> None:
    weights = mae_weights()
    with torch.no_grad():
        same(loaded(weights, tmp_path, num_heads=8).tokens(images()), mae_tokens(weights, images(), 8))
    assert refused(weights, tmp_path, num_heads=7) == "width 128 is not a multiple of 7 attention heads. Set num_heads"


def test_positions_are_stretched_to_any_image_size(tmp_path: Path) -> None:
    weights = mae_weights()
    seen = images(96, 32)
    table = torch.cat([torch.zeros(1, 128), sincos_table((6, 2), 128, "column", (4, 4))]).unsqueeze(0)
    for size, position_grid in ((None, None), ((96, 32), (4, 4)), ((64, 64), None)):
        backbone = loaded(weights, tmp_path, image_size=size)
        with torch.no_grad():
            same(backbone.tokens(seen), mae_tokens(weights, seen, 2, table))
        assert not backbone.load_report.resized
        assert backbone.spec.encoder.position_grid == position_grid


def test_a_learned_table_of_a_non_square_grid_needs_the_image_size(tmp_path: Path) -> None:
    weights = mae_weights()
    weights["pos_embed"] = torch.randn(1, 1 + 2 * 6, 128)
    message = (
        "has positions of 12 patches, which is not a square grid. Set image_size to the height and width of its images"
    )
    assert refused(weights, tmp_path) == message
    assert refused(weights, tmp_path, image_size=(64, 64)).startswith(
        "pos_embed has 13 positions, which is not a square"
    )
    backbone = loaded(weights, tmp_path, image_size=(32, 96))
    with torch.no_grad():
        same(backbone.tokens(images(32, 96)), mae_tokens(weights, images(32, 96), 2))
    assert backbone.spec.encoder.keep_positions


OTHER_ARCHITECTURES = {
    "dist_token": "is a distilled DeiT, whose distillation token a plain ViT does not have",
    "layers.0.blocks.0.norm1.weight": "is a Swin Transformer, whose windows and stages a plain ViT does not have",
    "visual.conv1.weight": "is CLIP, an image and a text model. Use timm:NAME@FILE with timm's name of its ViT",
    "conv1.weight": "is a convolutional network, not a plain ViT",
    "vit.embeddings.cls_token": "has the names of transformers. Use the directory with its config.json",
}


@pytest.mark.parametrize("name", OTHER_ARCHITECTURES)
def test_other_architectures_are_rejected_with_the_reason(name: str, tmp_path: Path) -> None:
    assert (
        refused({"patch_embed.proj.weight": torch.ones(8, 3, 4, 4), name: torch.ones(1)}, tmp_path)
        == (OTHER_ARCHITECTURES[name])
    )


def test_a_file_without_a_vit_is_rejected(tmp_path: Path) -> None:
    assert refused({"fc.weight": torch.ones(1)}, tmp_path) == (
        "is not a plain ViT under the names of MAE or timm (patch_embed.proj.weight is missing). "
        "If timm has the model, use timm:NAME@FILE"
    )


def test_unexpected_tensors_are_an_error_unless_allowed(tmp_path: Path) -> None:
    weights = mae_weights()
    weights["blocks.0.ls1.gamma"] = torch.ones(128)
    assert refused(weights, tmp_path) == (
        "1 unexpected tensor (blocks.0.ls1.gamma). Use a file that matches, or allow them by name or pattern "
        "(--allow-missing NAME, allow_missing=[…])"
    )
    backbone = loaded(weights, tmp_path, allow_missing=["blocks.*.ls1.gamma"])
    assert backbone.load_report.unexpected == ["blocks.0.ls1.gamma"]


def test_missing_tensors_are_an_error_unless_allowed(tmp_path: Path) -> None:
    weights = mae_weights()
    del weights["blocks.1.mlp.fc2.bias"], weights["norm.weight"]
    assert refused(weights, tmp_path).startswith("2 missing tensors (blocks.1.mlp.fc2.bias, norm.weight). ")
    backbone = loaded(weights, tmp_path, allow_missing=["blocks.1.*", "norm.weight"])
    assert backbone.load_report.missing == ["blocks.1.mlp.fc2.bias", "norm.weight"]


def test_quantised_weights_are_rejected(tmp_path: Path) -> None:
    weights = mae_weights()
    weights["norm.weight"] = weights["norm.weight"].to(torch.int8)
    assert refused(weights, tmp_path) == (
        "norm.weight has dtype torch.int8, expected a floating-point type. Use weights that are not quantised"
    )


def test_a_missing_or_unknown_source_lists_the_supported_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist. Use a run directory, a checkpoint, timm:NAME, timm:NAME@FILE"):
        load_backbone(tmp_path / "none.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: is a directory of unknown format. Use a run directory, "):
        load_backbone(tmp_path / "empty")


@pytest.mark.parametrize("name", ["pos_embed", "cls_token"])
@pytest.mark.parametrize("shape", [(0, 17, 128), (1, 0, 128), (17, 128), (128,)])
def test_positions_without_values_are_refused(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    problem = f"{name} has shape {shape}, expected 1 × tokens × width. Use a plain ViT"
    assert refused(mae_weights() | {name: torch.zeros(shape)}, tmp_path) == problem


def test_a_patch_projection_without_values_is_refused(tmp_path: Path) -> None:
    problem = "patch_embed.proj.weight has shape (0, 3, 16, 16), expected a convolution over square patches."
    assert problem in refused(mae_weights() | {"patch_embed.proj.weight": torch.zeros(0, 3, 16, 16)}, tmp_path)
