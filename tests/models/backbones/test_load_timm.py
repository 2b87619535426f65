"""Plain ViTs of timm: all of them by name, and files of other image sizes, names and codebases."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import load_checkpoint, save_for_hf
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from c2fmae.core.errors import UserError
from c2fmae.models.backbones import load_backbone
from c2fmae.models.backbones.assemble import SourceContents, backbone_from_timm_names
from c2fmae.models.backbones.timm_reader import has_supported_pooling, read_timm, spec_from_vit
from c2fmae.models.encoder import create_vit
from tests.methods.tiny_methods import perturb_parameters

pytestmark = pytest.mark.numeric

NAMES = [name for module in ("vision_transformer", "deit") for name in timm.list_models(module=module)]
PLAIN = [name for name in NAMES if "distilled" not in name]


SMALL: dict[str, Any] = {"embed_dim": 96, "depth": 1, "num_heads": 2}


def small(name: str) -> VisionTransformer:
    """A ViT of that name for images of 2×3 patches, one narrow block deep, with all its other features."""
    with torch.device("meta"):
        patch = create_vit(name, image_size=None, fc_norm=None, **SMALL).patch_embed.patch_size[0]
    vit = create_vit(name, image_size=(2 * patch, 3 * patch), fc_norm=None, **SMALL).eval()
    vit.init_weights()
    perturb_parameters(vit)
    return vit


@pytest.mark.parametrize("name", PLAIN)
def test_every_plain_vit_gives_the_features_of_timm(name: str) -> None:
    vit = small(name)
    spec = spec_from_vit(vit, name)
    shape = {"dim": 96, "depth": 1, "num_heads": 2}
    spec = spec.model_copy(update={"encoder": spec.encoder.model_copy(update=shape)})
    backbone = backbone_from_timm_names(SourceContents(source=name, spec=spec, tensors=vit.state_dict()))
    images = torch.randn(2, 3, *vit.patch_embed.img_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = vit.forward_features(images)
        ours = backbone.tokens(images)
        torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=1e-5)  # some norm to large numbers
        if has_supported_pooling(vit):
            pooled = vit.forward_head(theirs, pre_logits=True)
            torch.testing.assert_close(backbone.pooled(images), pooled, atol=5e-5, rtol=1e-5)
    assert not backbone.load_report.missing
    assert not backbone.load_report.unexpected
    assert set(backbone.load_report.unused) <= {"attn_pool"}


OTHERS = (
    "deit_tiny_distilled_patch16_224",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "resnet10t",
    "convnext_atto",
    "vit_tiny_r_s16_p8_224",
    "vit_relpos_small_patch16_224",
    "beit_base_patch16_224",
    "eva02_tiny_patch14_224",
    "cait_xxs24_224",
    "xcit_nano_12_p16_224",
    "mixer_s32_224",
    "pit_ti_224",
    "hiera_tiny_224",
    "samvit_base_patch16",
    "naflexvit_base_patch16_gap",
)


@pytest.mark.parametrize("name", OTHERS)
def test_models_that_are_not_plain_vits_are_rejected(name: str) -> None:
    with pytest.raises(UserError) as caught:
        read_timm(f"timm:{name}@nowhere.pth")
    assert str(caught.value) == f"encoder: {name!r} is not a plain ViT. Use one such as vit_base_patch16_224"


def images(height: int = 64, width: int = 64) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def donor(size: int | tuple[int, int] = 160, **options: Any) -> VisionTransformer:
    vit = timm.create_model("test_vit", img_size=size, num_classes=7, **options).eval()
    assert isinstance(vit, VisionTransformer)
    perturb_parameters(vit)
    return vit


def written(vit: nn.Module, path: Path) -> str:
    save_file(vit.state_dict(), path)
    return f"timm:test_vit@{path}"


def test_a_file_gives_the_features_of_timm_and_its_head_is_unused(tmp_path: Path) -> None:
    vit = donor()
    backbone = load_backbone(written(vit, tmp_path / "vit.safetensors"))
    with torch.no_grad():
        theirs = vit.forward_features(images(160, 160))
        torch.testing.assert_close(backbone.tokens(images(160, 160)), theirs, atol=1e-5, rtol=1e-5)
    assert backbone.load_report.unused == {"head": 2}
    assert (backbone.spec.mean, backbone.spec.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert not backbone.load_report.resized


def test_positions_of_another_image_size_are_resized_as_timm_does_and_reported(tmp_path: Path) -> None:
    source = written(donor(224), tmp_path / "vit.safetensors")
    backbone = load_backbone(source)
    theirs = donor()
    load_checkpoint(theirs, str(tmp_path / "vit.safetensors"), filter_fn=checkpoint_filter_fn)
    with torch.no_grad():
        expected = theirs.forward_features(images(160, 160))
        torch.testing.assert_close(backbone.tokens(images(160, 160)), expected, atol=1e-5, rtol=1e-5)
    assert backbone.load_report.resized == {"pos_embed": "14×14 → 10×10, bicubic with antialiasing, in float32"}
    assert "resized: pos_embed 14×14 → 10×10" in str(backbone.load_report)


def test_a_finetuned_file_keeps_its_norm_after_pooling(tmp_path: Path) -> None:
    vit = donor(global_pool="avg", fc_norm=True)
    backbone = load_backbone(written(vit, tmp_path / "vit.safetensors"))
    with torch.no_grad():
        theirs = vit.forward_head(vit.forward_features(images(160, 160)), pre_logits=True)
        torch.testing.assert_close(backbone.pooled(images(160, 160)), theirs, atol=1e-5, rtol=1e-5)


def test_weights_of_another_patch_size_or_depth_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"patch_embed.proj.weight has shape \(64, 3, 8, 8\), expected"):
        load_backbone(written(donor(patch_size=8), tmp_path / "vit.safetensors"))
    with pytest.raises(UserError, match=r": 12 unexpected tensors \(blocks.6.attn.proj.bias, "):
        load_backbone(written(donor(depth=7), tmp_path / "vit.safetensors"))
    with pytest.raises(UserError, match=r": 12 missing tensors \(blocks.5.norm1.weight, "):
        load_backbone(written(donor(depth=5), tmp_path / "vit.safetensors"))


def test_missing_tensors_are_initialised_reproducibly(tmp_path: Path) -> None:
    vit = donor()
    absent = ["pos_embed", "cls_token", "blocks.2.attn.qkv.weight", "blocks.2.norm1.weight"]
    save_file({name: each for name, each in vit.state_dict().items() if name not in absent}, tmp_path / "vit.st")
    one, other = (
        load_backbone(f"timm:test_vit@{tmp_path / 'vit.st'}", allow_missing=absent).state_dict() for _ in range(2)
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(each, other[name]) for name, each in one.items())
    assert 0.01 < one["encoder.pos_embed"].std() < 0.03
    assert 0.01 < one["encoder.blocks.2.attn.qkv.weight"].std() < 0.3
    assert torch.equal(one["encoder.blocks.2.attn.proj.weight"], vit.state_dict()["blocks.2.attn.proj.weight"])


def test_layer_scales_that_the_named_vit_lacks_are_an_error(tmp_path: Path) -> None:
    vit = donor(init_values=0.1)
    with pytest.raises(UserError, match=r": 12 unexpected tensors \(blocks.0.ls1.gamma, "):
        load_backbone(written(vit, tmp_path / "vit.safetensors"))


def test_names_of_other_codebases_are_converted_by_timm(tmp_path: Path) -> None:
    vit = donor(init_values=0.1)
    old = {
        name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): each
        for name, each in vit.state_dict().items()
    }
    save_file(old, tmp_path / "vit.safetensors")
    found = read_timm(f"timm:test_vit2@{tmp_path / 'vit.safetensors'}")
    assert "blocks.0.ls1.gamma" in found.tensors


def test_an_unknown_timm_name_suggests_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"^encoder: timm has no model named 'vit_bse_patch16_224'. Did you mean 'vit_base_pat"
    ):
        load_backbone("timm:vit_bse_patch16_224")


def test_a_directory_saved_by_timm_is_read(tmp_path: Path) -> None:
    args: dict[str, Any] = {"img_size": (64, 96), "depth": 2, "global_pool": "avg", "fc_norm": True, "in_chans": 4}
    vit = timm.create_model("test_vit", num_classes=7, **args).eval()
    assert isinstance(vit, VisionTransformer)
    perturb_parameters(vit)
    save_for_hf(vit, str(tmp_path), model_args=args)
    backbone, vit = load_backbone(tmp_path).double(), vit.double()
    seen = torch.randn(2, 4, 64, 96, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        tokens = vit.forward_features(seen)
        torch.testing.assert_close(backbone.tokens(seen), tokens, atol=1e-5, rtol=1e-5)
        pooled = vit.forward_head(tokens, pre_logits=True)
        torch.testing.assert_close(backbone.pooled(seen), pooled, atol=1e-5, rtol=1e-5)
    assert backbone.load_report.unused == {"head": 2}


def test_unsupported_or_wrong_timm_model_args_are_rejected(tmp_path: Path) -> None:
    save_for_hf(donor(), str(tmp_path), model_args={"qk_norm": True})
    with pytest.raises(UserError, match=r"config\.json: model_args\.qk_norm: no such setting\. Did you mean 'fc_norm'"):
        load_backbone(tmp_path)
    save_for_hf(donor(), str(tmp_path), model_args={"depth": 10**9})
    with pytest.raises(UserError, match=r"config\.json: describes 1,000,000,000 blocks, but model\.safetensors holds "):
        load_backbone(tmp_path)


@pytest.mark.parametrize(("name", "global_pool", "pooling"), [("test_vit", "max", "max"), ("test_vit3", None, "map")])
def test_an_unsupported_pooling_of_timm_is_noted(name: str, global_pool: str, pooling: str, tmp_path: Path) -> None:
    save_for_hf(timm.create_model(name, num_classes=0), str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "global_pool": global_pool, "model_args": None}))
    assert load_backbone(tmp_path).load_report.notes == [
        f"its pooling in timm ({pooling}) is not supported, mean is used instead"
    ]


def test_a_config_of_an_older_timm_is_read(tmp_path: Path) -> None:
    save_for_hf(donor(64), str(tmp_path))
    config = {"architecture": "test_vit", "input_size": [3, 64, 64], "mean": [0.1, 0.2, 0.3], "std": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = load_backbone(tmp_path).spec
    assert (spec.mean, spec.std, spec.image_size) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5), (64, 64))
