"""Folders of transformers' ViT and ViTMAE: the same features, without importing it."""

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


def features(model: "PreTrainedModel", photos: Tensor) -> Tensor:
    inner = getattr(model, "vit", model)
    is_mae = "MAE" in type(inner).__name__
    noise = {"noise": torch.arange(float(photos[0, 0].numel() // 256)).expand(len(photos), -1)} if is_mae else {}
    with torch.no_grad():
        return inner(photos, **noise).last_hidden_state  # type: ignore[no-any-return]


def photos(height: int = 64, width: int = 64, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1))


LEFT = {
    "ViTModel": {"pooler": 2},
    "ViTForImageClassification": {"head": 2},
    "ViTMAEModel": {},
    "ViTMAEForPreTraining": {
        "mask_token": 1, "decoder_pos_embed": 1, "decoder_embed": 2, "decoder_blocks": 12, "decoder_norm": 2,
        "decoder_pred": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_a_saved_folder_gives_the_features_of_transformers(name: str, tmp_path: Path) -> None:
    model = vit(name)
    model.save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path)
    with torch.no_grad():
        found = backbone.tokens(photos())
    torch.testing.assert_close(found, features(model, photos()), atol=1e-5, rtol=1e-5)
    assert backbone.load_report.unused == LEFT[name]
    assert backbone.spec.encoder.norm_eps == 1e-12
    assert backbone.spec.pool == ("mean" if "MAE" in name else "cls")


@pytest.mark.parametrize("change", [{"num_channels": 5}, {"image_size": (32, 96)}, {"layer_norm_eps": 1e-2}])
def test_other_channels_wide_photos_and_other_norms_are_kept(change: dict[str, Any], tmp_path: Path) -> None:
    model = vit(**change)
    model.save_pretrained(tmp_path)
    height, width = change.get("image_size", (64, 64))
    seen = photos(height, width, change.get("num_channels", 3))
    with torch.no_grad():
        found = load_backbone(tmp_path).tokens(seen)
    torch.testing.assert_close(found, features(model, seen), atol=1e-5, rtol=1e-5)


def test_shards_pickles_and_the_names_of_memory_are_read_alike(tmp_path: Path) -> None:
    model = vit()
    expected = features(model, photos())
    model.save_pretrained(tmp_path / "parts", max_shard_size="50KB")
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 1
    model.save_pretrained(tmp_path / "pickle")
    (tmp_path / "pickle" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pickle" / "pytorch_model.bin")  # under the names that modules have
    for name in ("parts", "pickle"):
        with torch.no_grad():
            torch.testing.assert_close(load_backbone(tmp_path / name).tokens(photos()), expected, atol=1e-5, rtol=1e-5)


def test_how_photos_are_standardised_is_read_or_told(tmp_path: Path) -> None:
    vit().save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path)
    assert backbone.spec.mean == backbone.spec.std == (0.5, 0.5, 0.5)
    assert backbone.load_report.notes == [
        "it does not say how photos are standardised: to -1 … 1, as Hugging Face's ViTs usually"
    ]
    said = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
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
    '{"model_type": "deit"}': "model_type 'deit' has a second, distilled token, which a plain ViT has not",
    '{"model_type": "swin"}': "model_type 'swin' has windows and stages, which a plain ViT has not",
    '{"model_type": "clip"}': "model_type 'clip' is made of two models, for photos and for texts",
    '{"model_type": "resnet"}': "model_type 'resnet' is a convolutional network",
    '{"model_type": "dinov3"}': "model_type 'dinov3' is not among what is read: vit and vit_mae",
}


@pytest.mark.parametrize("config", CONFIGS)
def test_other_models_are_refused_with_the_reason(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError) as caught:
        load_backbone(tmp_path)
    assert str(caught.value) == f"{tmp_path}: {CONFIGS[config]}. Where timm knows it, give timm:NAME@FILE"


LIES = {
    "num_hidden_layers": (10**9, "config.json asks for 1000000000 blocks, but the weights have 2"),
    "image_size": (16 * 10**6, "config.json asks for 1000000000001 positions, but the weights have 17"),
    "num_attention_heads": (5, "5 attention heads do not divide its width, 64. Say num_heads"),
    "hidden_act": ("relu", "its activation is 'relu'. Only 'gelu' is read"),
}


@pytest.mark.parametrize("setting", LIES)
def test_a_config_that_is_not_of_the_weights_is_refused(setting: str, tmp_path: Path) -> None:
    vit().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, setting: LIES[setting][0]}))
    with pytest.raises(UserError) as caught:
        load_backbone(tmp_path)
    assert str(caught.value) == f"{tmp_path}: {LIES[setting][1]}"


def test_layer_scales_that_a_vit_has_not_are_no_small_thing(tmp_path: Path) -> None:
    model = vit()
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({**model.state_dict(), "layers.0.layer_scale1.lambda1": torch.ones(64)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"has, without a place for it, 1 tensors: blocks.0.layer_scale1.lambda1. "):
        load_backbone(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "", "[" * 100_000, " " * 2_000_000])
def test_a_config_that_is_none_is_a_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    reason = r"config\.json: (is not JSON|expected a JSON object|is nested more than 64 levels|has 2,000,000 bytes)"
    with pytest.raises(UserError, match=reason):
        load_backbone(tmp_path)
