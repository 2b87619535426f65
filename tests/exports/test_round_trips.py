"""Exports are reloaded by the libraries they are for, on other images and in other ways than the export does itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from c2fmae.core.errors import RunError, UserError
from c2fmae.core.granularity import IGNORE
from c2fmae.exports import export, read_autoencoder
from c2fmae.exports.as_hf import hf_target
from c2fmae.exports.as_safetensors import safetensors_target
from c2fmae.exports.as_timm import timm_target
from c2fmae.exports.export import write_export
from c2fmae.models.backbones import Backbone, load_backbone
from tests.exports.noise_sources import NOISE_ORIGIN, draw_noise_images, is_close, make_noise_backbone, write_noise_run
from tests.methods.tiny_methods import build_tiny_method, draw_noise_scenes

pytestmark = pytest.mark.numeric

LIMIT = 1e-4

BACKBONES = {
    "computed positions": lambda: make_noise_backbone(),
    "stored positions, H≠W": lambda: make_noise_backbone(size=(32, 48), keep_positions=True),
    "pooled by the class token": lambda: make_noise_backbone(pool="cls", keep_positions=True),
    "a norm after pooling": lambda: make_noise_backbone(has_fc_norm=True),
    "one channel": lambda: make_noise_backbone(channels=1, size=(48, 32)),
    "four channels": lambda: make_noise_backbone(channels=4, keep_positions=True),
    "another patch, width and depth": lambda: make_noise_backbone(
        "vit_tiny_patch16_224", patch_size=8, dim=32, depth=3, num_heads=4, size=(24, 40)
    ),
    "registers, layer scale, no class token": lambda: make_noise_backbone(
        "test_vit2", has_fc_norm=True, keep_positions=True
    ),
    "attention pooling, which is ignored": lambda: make_noise_backbone("test_vit3", keep_positions=True),
    "other norms": lambda: make_noise_backbone("test_vit4"),
    "positions of patches alone": lambda: make_noise_backbone(
        "vit_small_patch14_reg4_dinov2", dim=32, num_heads=4, size=(28, 42), keep_positions=True
    ),
}
PLAIN = [
    "computed positions",
    "stored positions, H≠W",
    "pooled by the class token",
    "one channel",
    "four channels",
    "another patch, width and depth",
]


def compute_features(backbone: Backbone, images: Tensor) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        given = backbone.standardise(images)
        return backbone.tokens(given), backbone.pooled(given)


@pytest.mark.parametrize("kind", BACKBONES)
def test_timm_computes_the_same_features_from_the_exported_file_and_directory(kind: str, tmp_path: Path) -> None:
    backbone = BACKBONES[kind]()
    done = write_export(timm_target(backbone), NOISE_ORIGIN, tmp_path / "out")
    assert done.max_difference < LIMIT
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_classes"] == 0
    images = draw_noise_images(backbone.spec.image_size, backbone.spec.channels["rgb"])
    mean, std = (torch.tensor(config["pretrained_cfg"][key]).view(-1, 1, 1) for key in ("mean", "std"))
    given = (images / 255 - mean) / std
    tokens, pooled = compute_features(backbone, images)
    file = str(tmp_path / "out" / "model.safetensors")
    alone = timm.create_model(
        config["architecture"], num_classes=0, checkpoint_path=file, weight_init="skip", **config["model_args"]
    )
    whole = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, weight_init="skip")
    for vit in (alone, whole):
        assert isinstance(vit, VisionTransformer)
        with torch.inference_mode():
            assert is_close(vit.eval().forward_features(given), tokens)
            assert is_close(vit(given), pooled)


def test_timm_resizes_stored_positions_as_c2fmae_does(tmp_path: Path) -> None:
    backbone = make_noise_backbone(keep_positions=True, size=(32, 48))
    done = write_export(timm_target(backbone), NOISE_ORIGIN, tmp_path / "out")
    assert [each.tolerance for each in done.comparisons] == [done.comparisons[0].tolerance] * 3
    vit = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, img_size=(64, 16))
    images = draw_noise_images((64, 16))
    with torch.inference_mode():
        assert is_close(vit.eval()(backbone.standardise(images)), compute_features(backbone, images)[1])


def test_computed_positions_can_be_exported_for_another_image_size(tmp_path: Path) -> None:
    run = write_noise_run(tmp_path / "run")
    comparison = export("timm", run, tmp_path / "as-trained").comparisons[-1]
    assert comparison.tolerance is None
    assert "export with --image-size" in str(comparison)
    assert comparison.difference > 0.01
    export("timm", run, tmp_path / "for-it", image_size=(48, 32))
    vit = timm.create_model(f"local-dir:{tmp_path / 'for-it'}", pretrained=True).eval()
    backbone, images = load_backbone(run), draw_noise_images((48, 32))
    with torch.inference_mode():
        assert is_close(vit(backbone.standardise(images)), compute_features(backbone, images)[1])


def test_timm_can_add_a_new_head_to_an_export(tmp_path: Path) -> None:
    write_export(timm_target(make_noise_backbone(channels=4)), NOISE_ORIGIN, tmp_path / "out")
    vit = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=7)
    assert vit(torch.zeros(1, 4, 32, 32)).shape == (1, 7)
    saved_weights = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(vit.state_dict()["patch_embed.proj.weight"], saved_weights["patch_embed.proj.weight"])


@pytest.mark.parametrize("kind", PLAIN)
def test_transformers_computes_the_same_features(kind: str, tmp_path: Path) -> None:
    from transformers import ViTImageProcessor, ViTModel

    backbone = BACKBONES[kind]()
    done = write_export(hf_target(backbone), NOISE_ORIGIN, tmp_path / "out")
    assert done.max_difference < LIMIT
    model = ViTModel.from_pretrained(tmp_path / "out", add_pooling_layer=False)
    model.train(False)
    assert model.config.layer_norm_eps == 1e-6
    assert model.pooler is None
    images = draw_noise_images(backbone.spec.image_size, backbone.spec.channels["rgb"])
    with torch.inference_mode():
        tokens = model(backbone.standardise(images)).last_hidden_state
    assert is_close(tokens, compute_features(backbone, images)[0])
    processor = ViTImageProcessor.from_pretrained(tmp_path / "out")
    processed = processor(list(images), return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    assert is_close(processed, backbone.standardise(images))
    again = load_backbone(tmp_path / "out")
    assert again.spec.pool == backbone.spec.pool  # for which transformers has no option
    assert is_close(compute_features(again, images)[1], compute_features(backbone, images)[1])
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert len(modes) == 1  # transformers makes the weights private to the user


def test_resizing_by_transformers_is_reported_and_not_checked(tmp_path: Path) -> None:
    comparisons = write_export(
        hf_target(make_noise_backbone(keep_positions=True, size=(48, 48))), NOISE_ORIGIN, tmp_path / "a"
    ).comparisons
    assert [each.tolerance is None for each in comparisons] == [False, True]
    comparisons = write_export(hf_target(make_noise_backbone(size=(32, 48))), NOISE_ORIGIN, tmp_path / "b").comparisons
    assert [each.tolerance is None for each in comparisons] == [False]
    assert (
        "It takes images of 32×48 only: transformers resizes square tables."
        in (tmp_path / "b" / "README.md").read_text()
    )


@pytest.mark.parametrize("kind", BACKBONES)
def test_an_exported_backbone_is_reloaded_exactly(kind: str, tmp_path: Path) -> None:
    backbone = BACKBONES[kind]()
    done = write_export(safetensors_target(backbone), NOISE_ORIGIN, tmp_path / "out")
    assert done.max_difference == 0
    again = load_backbone(tmp_path / "out")
    assert again.spec == backbone.spec
    images = draw_noise_images((backbone.patch * 3, backbone.patch), backbone.spec.channels["rgb"])
    for one, other in zip(compute_features(again, images), compute_features(backbone, images), strict=True):
        assert torch.equal(one, other)


def test_a_safetensors_export_of_a_run_holds_all_granularities(tmp_path: Path) -> None:
    run = write_noise_run(tmp_path / "run", build_tiny_method(size=(32, 48)))
    backbone = load_backbone(run)
    export("safetensors", run, tmp_path / "out")
    again = load_backbone(tmp_path / "out")
    assert again.granularities == backbone.granularities == ("semantic", "instance", "rgb")
    assert again.spec == backbone.spec
    assert again.spec.class_names == ("sky", "forest")
    scenes = draw_noise_scenes(size=(48, 32))
    maps = {**scenes.maps, "rgb": backbone.standardise(scenes.maps["rgb"])}
    assert (maps["semantic"] == IGNORE).any()
    with torch.inference_mode():
        assert torch.equal(again.tokens(maps), backbone.tokens(maps))
    assert any("without a norm after the last block" in note for note in again.load_report.notes)


def test_the_rgb_part_of_a_run_can_be_exported(tmp_path: Path) -> None:
    run = write_noise_run(tmp_path / "run")
    export("safetensors", run, tmp_path / "out", part="rgb")
    assert not any("semantic" in name for name in load_file(tmp_path / "out" / "model.safetensors"))
    again, images = load_backbone(tmp_path / "out"), draw_noise_images((32, 32))
    assert again.granularities == ("rgb",)
    assert torch.equal(compute_features(again, images)[0], compute_features(load_backbone(run), images)[0])


def test_an_exported_autoencoder_predicts_the_same_and_holds_its_encoder(tmp_path: Path) -> None:
    method = build_tiny_method("multimae")
    run = write_noise_run(tmp_path / "run", method)
    export("safetensors", run, tmp_path / "out", part="autoencoder")
    again = read_autoencoder(tmp_path / "out")
    assert again.config == method.config
    assert not again.model.training
    scenes = draw_noise_scenes()
    maps, masks = (
        method.prepare_inputs(scenes),
        method.sample_masks(scenes, progress=0.5, generator=torch.Generator().manual_seed(0)),
    )
    method.model.eval()
    with torch.inference_mode():
        ours, theirs = method.model(maps, masks), again.model(maps, masks)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    images = draw_noise_images((32, 32))
    backbone = load_backbone(tmp_path / "out")
    assert torch.equal(compute_features(backbone, images)[0], compute_features(load_backbone(run), images)[0])
    assert set(backbone.load_report.unused) == {"decoder", "heads"}


def test_an_export_of_an_export_is_the_same_file(tmp_path: Path) -> None:
    run = write_noise_run(tmp_path / "run")
    one = export("safetensors", run, tmp_path / "one")
    two = export("safetensors", tmp_path / "one", tmp_path / "two")
    assert one.sha256 == two.sha256
    assert (tmp_path / "one" / "config.json").read_bytes() == (tmp_path / "two" / "config.json").read_bytes()


REFUSED = {
    "registers": ("test_vit2", "it has no class token"),
    "norm": ("test_vit4", "it has no class token"),
    "dino": ("vit_small_patch14_reg4_dinov2", "it has register tokens"),
    "scales": ("vit_small_patch14_dinov2", "it has layer scales"),
    "clip": ("vit_base_patch16_clip_224", "it has a norm before its blocks"),
    "quick": ("vit_base_patch16_clip_quickgelu_224", "it has a norm before its blocks"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_vit_that_transformers_cannot_express_is_rejected_with_the_reason(kind: str) -> None:
    name, reason = REFUSED[kind]
    backbone = make_noise_backbone(name, dim=32, num_heads=4, size=(28, 28) if "14" in name else (32, 32))
    with pytest.raises(UserError) as caught:
        hf_target(backbone)
    message = f"new backbone: transformers' ViTModel cannot express this ViT: {reason}. Use: c2fmae export timm"
    assert str(caught.value) == message


def test_export_to_transformers_rejects_a_norm_after_pooling() -> None:
    with pytest.raises(UserError, match="its last norm comes after pooling"):
        hf_target(make_noise_backbone(has_fc_norm=True))


def test_a_backbone_without_rgb_can_only_be_exported_to_safetensors(tmp_path: Path) -> None:
    run = write_noise_run(tmp_path / "run", build_tiny_method(granularities=("semantic", "instance")))
    with pytest.raises(UserError) as caught:
        export("timm", run, tmp_path / "out")
    message = f"{run}: takes semantic, instance but not rgb. Use: c2fmae export safetensors"
    assert str(caught.value) == message
    assert not (tmp_path / "out").exists()
    export("safetensors", run, tmp_path / "out")
    assert load_backbone(tmp_path / "out").granularities == ("semantic", "instance")


def test_another_norm_eps_is_exported_or_reported(tmp_path: Path) -> None:
    from transformers import ViTConfig

    backbone = make_noise_backbone(keep_positions=True, norm_eps=1e-12, mlp_ratio=2)
    write_export(hf_target(backbone), NOISE_ORIGIN, tmp_path / "hf")
    config = ViTConfig.from_pretrained(tmp_path / "hf")
    assert (config.layer_norm_eps, config.intermediate_size) == (1e-12, 128)
    write_export(safetensors_target(backbone), NOISE_ORIGIN, tmp_path / "ours")
    assert load_backbone(tmp_path / "ours").spec == backbone.spec
    write_export(timm_target(backbone), NOISE_ORIGIN, tmp_path / "timm")
    note = "It was trained with norms of eps 1e-12, timm's have 1e-06: see the differences below."
    assert note in (tmp_path / "timm" / "README.md").read_text(encoding="utf-8")
    assert "trained with norms" not in "".join(timm_target(make_noise_backbone(norm_eps=1e-6)).notes)
    far = make_noise_backbone(norm_eps=0.1)
    with pytest.raises(RunError, match=r"computes other outputs.*It was trained with norms of eps 0.1"):
        write_export(timm_target(far), NOISE_ORIGIN, tmp_path / "far")


@pytest.mark.parametrize("kind", BACKBONES)
def test_an_export_for_timm_is_reloaded_as_a_backbone(kind: str, tmp_path: Path) -> None:
    backbone = BACKBONES[kind]()
    write_export(timm_target(backbone), NOISE_ORIGIN, tmp_path / "out")
    again = load_backbone(tmp_path / "out")
    images = draw_noise_images((backbone.patch * 3, backbone.patch), backbone.spec.channels["rgb"])
    for one, other in zip(compute_features(again, images), compute_features(backbone, images), strict=True):
        assert is_close(one, other)
    assert again.spec.image_size == backbone.spec.image_size
    assert again.spec.pool == backbone.spec.pool
    assert again.spec.encoder.keep_positions == backbone.spec.encoder.keep_positions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_args": {"checkpoint_path": "/etc/passwd"}},
            "config.json: model_args.checkpoint_path: no such setting.",
        ),
        ({"model_args": {"depth": 10**9}}, "config.json: describes 1,000,000,000 blocks, but model.safetensors holds"),
        ({"model_args": {"img_size": [10**8, 10**8]}}, "Use the config of these weights"),
        ({"architecture": ["vit"]}, "config.json: architecture: input should be a valid string, got ['vit']"),
        ({"architecture": "hf-hub:some/body"}, "encoder: timm has no model named 'hf-hub:some/body'."),
        ({"pretrained_cfg": {"input_size": 3}}, "config.json: pretrained_cfg.input_size: expected a list, got 3"),
        ({"model_args": {"global_pool": "max"}}, "model_args.global_pool: expected 'token' or 'avg', got 'max'"),
        ({"model_args": {"pool_include_prefix": True}}, "model_args.pool_include_prefix: expected False, got True"),
        ({"model_args": {"img_size": [32, 32], "depth": 2, "fc_norm": True}}, "fc_norm.weight"),
        ({"pretrained_cfg": {"mean": "grey"}}, "config.json: pretrained_cfg.mean: expected a list, got 'grey'"),
    ],
)
def test_an_invalid_timm_config_is_a_one_line_error(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_export(timm_target(make_noise_backbone()), NOISE_ORIGIN, tmp_path / "out")
    file = tmp_path / "out" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError) as caught:
        load_backbone(tmp_path / "out")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
