"""Position tables for other image sizes: they are interpolated as timm does."""

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models import save_for_hf
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.models.backbones import Backbone, load_backbone
from c2fmae.models.backbones.assemble import is_sincos_table, resize_positions
from c2fmae.models.positions import sincos_positions
from tests.models.backbones.official_mae import mae_weights

pytestmark = pytest.mark.numeric

WIDTH = 64


def learned(side: int, patch: int, path: Path) -> dict[str, Tensor]:
    """A ViT whose positions are not sines and cosines."""
    weights = mae_weights(width=WIDTH, depth=1, side=side, patch=patch, decoder=None)
    generator = torch.Generator().manual_seed(3)
    weights["pos_embed"] = torch.randn(weights["pos_embed"].shape, generator=generator)
    save_file(weights, path)
    return weights


def table_of(backbone: Backbone) -> Tensor:
    return backbone.encoder.pos_embed


@pytest.mark.parametrize(
    ("size", "patch", "to"),
    [(224, 16, (512, 512)), (224, 14, (518, 518)), (224, 16, (224, 352)), (224, 16, (352, 224)), (224, 16, (160, 160))],
)
def test_a_position_table_is_resized_as_timm_does(size: int, patch: int, to: tuple[int, int], tmp_path: Path) -> None:
    weights = learned(size, patch, tmp_path / "f.safetensors")
    backbone = load_backbone(tmp_path / "f.safetensors", image_size=to)
    old, new = size // patch, (to[0] // patch, to[1] // patch)
    assert backbone.load_report.resized == {
        "pos_embed": f"{old}×{old} → {new[0]}×{new[1]}, bicubic with antialiasing, in float32"
    }
    vit = timm.create_model(
        "vit_base_patch16_224", img_size=to, patch_size=patch, embed_dim=WIDTH, depth=1, num_heads=1
    )
    assert isinstance(vit, VisionTransformer)
    theirs = checkpoint_filter_fn(weights, vit)["pos_embed"]
    assert torch.equal(table_of(backbone), theirs[:, 1:])
    assert torch.equal(backbone.state_dict()["encoder.cls_token"], weights["cls_token"] + theirs[:, :1])
    grid = weights["pos_embed"][:, 1:].transpose(1, 2).reshape(1, WIDTH, old, old)
    byhand = F.interpolate(grid, size=new, mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(table_of(backbone), byhand)


@pytest.mark.parametrize("size", [(0, 32), (-16, 16), (33, 32), (32, 8)])
def test_an_image_size_must_be_a_positive_multiple_of_the_patch_size(size: tuple[int, int], tmp_path: Path) -> None:
    learned(64, 16, tmp_path / "f.safetensors")
    vit = timm.create_model("test_vit", num_classes=0)
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    save_for_hf(vit, str(tmp_path / "folder"))
    whole = tmp_path / "f.safetensors", f"timm:test_vit@{tmp_path / 'vit.safetensors'}", tmp_path / "folder"
    for source in whole:
        with pytest.raises(UserError) as caught:
            load_backbone(source, image_size=size)
        if min(size) < 1:
            message = (
                f"{source}: image_size: expected a positive height and width, got {size[0]}×{size[1]}. "
                "Change image_size"
            )
        else:
            side = next(side for side in size if side % 16)
            message = f"image_size: {side} is not a multiple of the patch size 16 (of {source}). Nearest: "
        assert str(caught.value).startswith(message)


def test_a_position_table_of_the_right_size_is_unchanged(tmp_path: Path) -> None:
    weights = learned(64, 16, tmp_path / "f.safetensors")
    for size in (None, (64, 64)):
        backbone = load_backbone(tmp_path / "f.safetensors", image_size=size)
        assert torch.equal(table_of(backbone), weights["pos_embed"][:, 1:])
        assert not backbone.load_report.resized
    table = torch.randn(1, 6, 8, dtype=torch.float64)
    assert resize_positions(table, (2, 3), (2, 3))[0] is table


def test_resizing_at_load_time_and_at_run_time_are_equal(tmp_path: Path) -> None:
    learned(64, 16, tmp_path / "f.safetensors")
    seen = torch.randn(1, 3, 96, 160, generator=torch.Generator().manual_seed(0))
    at_once, later = (load_backbone(tmp_path / "f.safetensors", image_size=size) for size in ((96, 160), None))
    with torch.no_grad():
        assert torch.equal(at_once.tokens(seen), later.tokens(seen))


def test_half_precision_tables_are_resized_in_float32(tmp_path: Path) -> None:
    weights = learned(64, 16, tmp_path / "f.safetensors")
    halves = {name: each.bfloat16() for name, each in weights.items()}
    save_file(halves, tmp_path / "halves.safetensors")
    save_file({name: each.float() for name, each in halves.items()}, tmp_path / "singles.safetensors")
    tables = [
        table_of(load_backbone(tmp_path / f"{name}.safetensors", image_size=(96, 96))) for name in ("halves", "singles")
    ]
    assert torch.equal(*tables)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("grid", [(14, 14), (3, 5), (1, 1)])
def test_sine_and_cosine_tables_are_recognised_in_any_precision(dtype: torch.dtype, grid: tuple[int, int]) -> None:
    table = sincos_positions(grid, 64)
    assert is_sincos_table(table.to(dtype), grid)
    assert not is_sincos_table((table + 0.02).to(dtype), grid)
    assert grid == (1, 1) or not is_sincos_table(table.flip(0).to(dtype), grid)
