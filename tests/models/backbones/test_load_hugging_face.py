"""ViT and ViTMAE of transformers: the same features, without importing transformers."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.models.backbones import load_backbone
from tests.methods.tiny_methods import perturb_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel

pytestmark = pytest.mark.numeric

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 160,
    "image_size": 64,
    "patch_size": 16,
}


def vit(name: str = "ViTModel", **changes: Any) -> "PreTrainedModel":
    import transformers

    config = transformers.ViTMAEConfig if "MAE" in name else transformers.ViTConfig
    if "MAE" in name:
        changes = {"mask_ratio": 0.0, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, **changes}
        changes |= {"decoder_num_attention_heads": 2, "decoder_intermediate_size": 64}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = getattr(transformers, name)(config(**{**SIZES, **changes})).eval()
        perturb_parameters(model)
    return model


def features(model: "PreTrainedModel", images: Tensor) -> Tensor:
    inner = getattr(model, "vit", model)
    is_mae = "MAE" in type(inner).__name__
    noise = {"noise": torch.arange(float(images[0, 0].numel() // 256)).expand(len(images), -1)} if is_mae else {}
    with torch.no_grad():
        return inner(images, **noise).last_hidden_state  # type: ignore[no-any-return]


def images(height: int = 64, width: int = 64, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1))


UNUSED = {
    "ViTModel": {"pooler": 2},
    "ViTForImageClassification": {"head": 2},
    "ViTMAEModel": {},
    "ViTMAEForPreTraining": {
        "mask_token": 1, "decoder_pos_embed": 1, "decoder_embed": 2, "decoder_blocks": 12, "decoder_norm": 2,
        "decoder_pred": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSED)
def test_a_saved_model_gives_the_features_of_transformers(name: str, tmp_path: Path) -> None:
    model = vit(name)
    model.save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path)
    with torch.no_grad():
        found = backbone.tokens(images())
    torch.testing.assert_close(found, features(model, images()), atol=1e-5, rtol=1e-5)
    assert backbone.load_report.unused == UNUSED[name]
    assert backbone.spec.encoder.norm_eps == 1e-12
    assert backbone.spec.pool == ("mean" if "MAE" in name else "cls")


@pytest.mark.parametrize("change", [{"num_channels": 5}, {"image_size": (32, 96)}, {"layer_norm_eps": 1e-2}])
def test_channels_image_sizes_and_norm_eps_are_read_from_the_config(change: dict[str, Any], tmp_path: Path) -> None:
    model = vit(**change)
    model.save_pretrained(tmp_path)
    height, width = change.get("image_size", (64, 64))
    seen = images(height, width, change.get("num_channels", 3))
    with torch.no_grad():
        found = load_backbone(tmp_path).tokens(seen)
    torch.testing.assert_close(found, features(model, seen), atol=1e-5, rtol=1e-5)


def test_sharded_and_pickled_weights_are_read_too(tmp_path: Path) -> None:
    model = vit()
    expected = features(model, images())
    model.save_pretrained(tmp_path / "parts", max_shard_size="50KB")
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 1
    model.save_pretrained(tmp_path / "pickle")
    (tmp_path / "pickle" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pickle" / "pytorch_model.bin")  # under the names that modules have
    for name in ("parts", "pickle"):
        with torch.no_grad():
            torch.testing.assert_close(load_backbone(tmp_path / name).tokens(images()), expected, atol=1e-5, rtol=1e-5)


def test_mean_and_std_are_read_or_assumed_with_a_note(tmp_path: Path) -> None:
    vit().save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path)
    assert backbone.spec.mean == backbone.spec.std == (0.5, 0.5, 0.5)
    assert backbone.load_report.notes == [
        "mean and std of images are not stored: 0.5 and 0.5 are assumed, as in most ViTs of transformers"
    ]
    config = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    backbone = load_backbone(tmp_path)
    assert (backbone.spec.mean, backbone.spec.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert not backbone.load_report.notes


def test_transformers_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vit().save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError):
        import transformers  # noqa: F401
    assert load_backbone(tmp_path).dim == 64


CONFIGS = {
    '{"model_type": "deit"}': "model_type 'deit' has a distillation token, which a plain ViT does not have",
    '{"model_type": "swin"}': "model_type 'swin' has windows and stages, which a plain ViT does not have",
    '{"model_type": "clip"}': "model_type 'clip' consists of an image model and a text model",
    '{"model_type": "resnet"}': "model_type 'resnet' is a convolutional network",
    '{"model_type": "dinov3"}': "model_type 'dinov3' is not supported (expected vit or vit_mae)",
}


@pytest.mark.parametrize("config", CONFIGS)
def test_other_model_types_are_rejected_with_the_reason(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError) as caught:
        load_backbone(tmp_path)
    assert str(caught.value) == f"{tmp_path}: {CONFIGS[config]}. If timm has the model, use timm:NAME@FILE"


MISMATCHES = {
    "num_hidden_layers": (
        10**9,
        "config.json describes 1000000000 blocks, but the weights have 2. Use the config of these weights",
    ),
    "image_size": (
        16 * 10**6,
        "config.json describes 1000000000001 positions, but the weights have 17. Use the config of these weights",
    ),
    "num_attention_heads": (5, "width 64 is not a multiple of 5 attention heads. Set num_heads"),
    "hidden_act": ("relu", "hidden_act: expected 'gelu', got 'relu'. Use another model"),
}


@pytest.mark.parametrize("setting", MISMATCHES)
def test_a_config_that_does_not_match_the_weights_is_rejected(setting: str, tmp_path: Path) -> None:
    vit().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, setting: MISMATCHES[setting][0]}))
    with pytest.raises(UserError) as caught:
        load_backbone(tmp_path)
    assert str(caught.value) == f"{tmp_path}: {MISMATCHES[setting][1]}"


def test_unexpected_layer_scales_are_an_error(tmp_path: Path) -> None:
    model = vit()
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({**model.state_dict(), "layers.0.layer_scale1.lambda1": torch.ones(64)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"1 unexpected tensor \(blocks.0.layer_scale1.lambda1\). "):
        load_backbone(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "", "[" * 100_000, " " * 2_000_000])
def test_a_malformed_config_is_an_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    reason = r"config\.json: (is not JSON|expected a JSON object|is nested more than 64 levels|has 2,000,000 bytes)"
    with pytest.raises(UserError, match=reason):
        load_backbone(tmp_path)
