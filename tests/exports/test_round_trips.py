"""What is written is read back by the tool that it is for, in ways that the export did not try itself."""

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

LIMIT = 1e-4

BACKBONES = {
    "computed positions": lambda: make_noise_backbone(),
    "kept positions, H≠W": lambda: make_noise_backbone(size=(32, 48), keep_positions=True),
    "pooled by the global token": lambda: make_noise_backbone(pool="cls", keep_positions=True),
    "a norm behind the pooling": lambda: make_noise_backbone(has_fc_norm=True),
    "grey photos": lambda: make_noise_backbone(channels=1, size=(48, 32)),
    "four channels": lambda: make_noise_backbone(channels=4, keep_positions=True),
    "another patch, width and depth": lambda: make_noise_backbone(
        "vit_tiny_patch16_224", patch_size=8, dim=32, depth=3, num_heads=4, size=(24, 40)
    ),
    "registers, layer scale, no global token": lambda: make_noise_backbone(
        "test_vit2", has_fc_norm=True, keep_positions=True
    ),
    "attention pooling left aside": lambda: make_noise_backbone("test_vit3", keep_positions=True),
    "other norms": lambda: make_noise_backbone("test_vit4"),
    "positions of patches alone": lambda: make_noise_backbone(
        "vit_small_patch14_reg4_dinov2", dim=32, num_heads=4, size=(28, 42), keep_positions=True
    ),
}
PLAIN = [
    "computed positions",
    "kept positions, H≠W",
    "pooled by the global token",
    "grey photos",
    "four channels",
    "another patch, width and depth",
]


def said(backbone: Backbone, photos: Tensor) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        given = backbone.standardise(photos)
        return backbone.tokens(given), backbone.pooled(given)


@pytest.mark.parametrize("kind", BACKBONES)
def test_timm_says_the_same_of_an_exported_file_and_folder(kind: str, tmp_path: Path) -> None:
    backbone = BACKBONES[kind]()
    done = write_export(timm_target(backbone), NOISE_ORIGIN, tmp_path / "out")
    assert done.max_difference < LIMIT
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_classes"] == 0
    photos = draw_noise_images(backbone.spec.image_size, backbone.spec.channels["rgb"])
    mean, std = (torch.tensor(config["pretrained_cfg"][key]).view(-1, 1, 1) for key in ("mean", "std"))
    given = (photos / 255 - mean) / std
    tokens, pooled = said(backbone, photos)
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


def test_kept_positions_are_resized_by_timm_as_they_are_here(tmp_path: Path) -> None:
    backbone = make_noise_backbone(keep_positions=True, size=(32, 48))
    done = write_export(timm_target(backbone), NOISE_ORIGIN, tmp_path / "out")
    assert [each.tolerance for each in done.comparisons] == [done.comparisons[0].tolerance] * 3
    vit = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, img_size=(64, 16))
    photos = draw_noise_images((64, 16))
    with torch.inference_mode():
        assert is_close(vit.eval()(backbone.standardise(photos)), said(backbone, photos)[1])


def test_computed_positions_at_another_size_are_told_and_exported_for_it(tmp_path: Path) -> None:
    run = write_noise_run(tmp_path / "run")
    told = export("timm", run, tmp_path / "as-trained").comparisons[-1]
    assert told.tolerance is None
    assert "export with --image-size" in str(told)
    assert told.difference > 0.01
    export("timm", run, tmp_path / "for-it", image_size=(48, 32))
    vit = timm.create_model(f"local-dir:{tmp_path / 'for-it'}", pretrained=True).eval()
    backbone, photos = load_backbone(run), draw_noise_images((48, 32))
    with torch.inference_mode():
        assert is_close(vit(backbone.standardise(photos)), said(backbone, photos)[1])


def test_an_exported_timm_folder_takes_a_new_head(tmp_path: Path) -> None:
    write_export(timm_target(make_noise_backbone(channels=4)), NOISE_ORIGIN, tmp_path / "out")
    vit = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=7)
    assert vit(torch.zeros(1, 4, 32, 32)).shape == (1, 7)
    saved_weights = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(vit.state_dict()["patch_embed.proj.weight"], saved_weights["patch_embed.proj.weight"])


@pytest.mark.parametrize("kind", PLAIN)
def test_transformers_says_the_same_of_an_exported_folder(kind: str, tmp_path: Path) -> None:
    from transformers import ViTImageProcessor, ViTModel

    backbone = BACKBONES[kind]()
    done = write_export(hf_target(backbone), NOISE_ORIGIN, tmp_path / "out")
    assert done.max_difference < LIMIT
    model = ViTModel.from_pretrained(tmp_path / "out", add_pooling_layer=False)
    model.train(False)
    assert model.config.layer_norm_eps == 1e-6
    assert model.pooler is None
    photos = draw_noise_images(backbone.spec.image_size, backbone.spec.channels["rgb"])
    with torch.inference_mode():
        tokens = model(backbone.standardise(photos)).last_hidden_state
    assert is_close(tokens, said(backbone, photos)[0])
    processor = ViTImageProcessor.from_pretrained(tmp_path / "out")
    processed = processor(list(photos), return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    assert is_close(processed, backbone.standardise(photos))
    again = load_backbone(tmp_path / "out")
    assert again.spec.pool == backbone.spec.pool  # for which transformers has no word
    assert is_close(said(again, photos)[1], said(backbone, photos)[1])
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert len(modes) == 1  # transformers would let nobody else read the weights


def test_transformers_resizes_squares_and_is_told_of(tmp_path: Path) -> None:
    comparisons = write_export(
        hf_target(make_noise_backbone(keep_positions=True, size=(48, 48))), NOISE_ORIGIN, tmp_path / "a"
    ).comparisons
    assert [each.tolerance is None for each in comparisons] == [False, True]
    comparisons = write_export(hf_target(make_noise_backbone(size=(32, 48))), NOISE_ORIGIN, tmp_path / "b").comparisons
    assert [each.tolerance is None for each in comparisons] == [False]
    assert "It takes photos of 32×48 alone: transformers resizes squares." in (tmp_path / "b" / "README.md").read_text()


@pytest.mark.parametrize("kind", BACKBONES)
def test_an_exported_backbone_is_loaded_as_it_was(kind: str, tmp_path: Path) -> None:
    backbone = BACKBONES[kind]()
    done = write_export(safetensors_target(backbone), NOISE_ORIGIN, tmp_path / "out")
    assert done.max_difference == 0
    again = load_backbone(tmp_path / "out")
    assert again.spec == backbone.spec
    photos = draw_noise_images((backbone.patch * 3, backbone.patch), backbone.spec.channels["rgb"])
    for one, other in zip(said(again, photos), said(backbone, photos), strict=True):
        assert torch.equal(one, other)


def test_all_granularities_of_a_run_travel(tmp_path: Path) -> None:
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
    assert any("no norm behind the last block" in note for note in again.load_report.notes)


def test_rgb_alone_of_a_run_travels(tmp_path: Path) -> None:
    run = write_noise_run(tmp_path / "run")
    export("safetensors", run, tmp_path / "out", part="rgb")
    assert not any("semantic" in name for name in load_file(tmp_path / "out" / "model.safetensors"))
    again, photos = load_backbone(tmp_path / "out"), draw_noise_images((32, 32))
    assert again.granularities == ("rgb",)
    assert torch.equal(said(again, photos)[0], said(load_backbone(run), photos)[0])


def test_a_whole_autoencoder_travels_with_its_heads_and_its_encoder(tmp_path: Path) -> None:
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
    photos = draw_noise_images((32, 32))
    backbone = load_backbone(tmp_path / "out")
    assert torch.equal(said(backbone, photos)[0], said(load_backbone(run), photos)[0])
    assert set(backbone.load_report.unused) == {"decoder", "heads"}


def test_an_export_of_an_export_is_the_same_file(tmp_path: Path) -> None:
    run = write_noise_run(tmp_path / "run")
    one = export("safetensors", run, tmp_path / "one")
    two = export("safetensors", tmp_path / "one", tmp_path / "two")
    assert one.sha256 == two.sha256
    assert (tmp_path / "one" / "config.json").read_bytes() == (tmp_path / "two" / "config.json").read_bytes()


REFUSED = {
    "registers": ("test_vit2", "it has no global token"),
    "norm": ("test_vit4", "it has no global token"),
    "dino": ("vit_small_patch14_reg4_dinov2", "it has registers"),
    "scales": ("vit_small_patch14_dinov2", "it has layer scales"),
    "clip": ("vit_base_patch16_clip_224", "it has a norm before its blocks"),
    "quick": ("vit_base_patch16_clip_quickgelu_224", "it has a norm before its blocks"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_transformers_cannot_express_is_refused_with_the_reason(kind: str) -> None:
    name, reason = REFUSED[kind]
    backbone = make_noise_backbone(name, dim=32, num_heads=4, size=(28, 28) if "14" in name else (32, 32))
    with pytest.raises(UserError) as caught:
        hf_target(backbone)
    message = f"made anew: transformers' ViTModel cannot express it: {reason}. Take: c2fmae export timm"
    assert str(caught.value) == message


def test_a_norm_behind_the_pooling_is_refused_by_transformers() -> None:
    with pytest.raises(UserError, match="its norm comes behind the pooling"):
        hf_target(make_noise_backbone(has_fc_norm=True))


def test_a_backbone_that_has_not_seen_photos_goes_out_as_safetensors_alone(tmp_path: Path) -> None:
    run = write_noise_run(tmp_path / "run", build_tiny_method(granularities=("semantic", "instance")))
    with pytest.raises(UserError) as caught:
        export("timm", run, tmp_path / "out")
    message = f"{run}: has not learned from photos: it takes semantic, instance. Take: c2fmae export safetensors"
    assert str(caught.value) == message
    assert not (tmp_path / "out").exists()
    export("safetensors", run, tmp_path / "out")
    assert load_backbone(tmp_path / "out").granularities == ("semantic", "instance")


def test_norms_of_other_eps_travel_or_are_told_of(tmp_path: Path) -> None:
    from transformers import ViTConfig

    backbone = make_noise_backbone(keep_positions=True, norm_eps=1e-12, mlp_ratio=2)
    write_export(hf_target(backbone), NOISE_ORIGIN, tmp_path / "hf")
    config = ViTConfig.from_pretrained(tmp_path / "hf")
    assert (config.layer_norm_eps, config.intermediate_size) == (1e-12, 128)
    write_export(safetensors_target(backbone), NOISE_ORIGIN, tmp_path / "ours")
    assert load_backbone(tmp_path / "ours").spec == backbone.spec
    write_export(timm_target(backbone), NOISE_ORIGIN, tmp_path / "timm")
    told = "Its norms add 1e-12 to variances, and timm's 1e-06: the difference is among those below."
    assert told in (tmp_path / "timm" / "README.md").read_text(encoding="utf-8")
    assert "Its norms" not in "".join(timm_target(make_noise_backbone(norm_eps=1e-6)).notes)
    far = make_noise_backbone(norm_eps=0.1)
    with pytest.raises(RunError, match=r"does not give the same of it.*Its norms add 0.1 to variances"):
        write_export(timm_target(far), NOISE_ORIGIN, tmp_path / "far")


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_folder_of_timms_comes_back(kind: str, tmp_path: Path) -> None:
    backbone = BACKBONES[kind]()
    write_export(timm_target(backbone), NOISE_ORIGIN, tmp_path / "out")
    again = load_backbone(tmp_path / "out")
    photos = draw_noise_images((backbone.patch * 3, backbone.patch), backbone.spec.channels["rgb"])
    for one, other in zip(said(again, photos), said(backbone, photos), strict=True):
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
        ({"model_args": {"depth": 10**9}}, "config.json: asks for 1,000,000,000 blocks, and model.safetensors holds"),
        ({"model_args": {"img_size": [10**8, 10**8]}}, "It is not of these weights"),
        ({"architecture": ["vit"]}, "config.json: architecture: input should be a valid string, got ['vit']"),
        ({"architecture": "hf-hub:some/body"}, "timm has no encoder named 'hf-hub:some/body'."),
        ({"pretrained_cfg": {"input_size": 3}}, "config.json: pretrained_cfg.input_size: expected a list, got 3"),
        ({"model_args": {"global_pool": "max"}}, "model_args.global_pool: expected 'token' or 'avg', got 'max'"),
        ({"model_args": {"pool_include_prefix": True}}, "model_args.pool_include_prefix: expected False, got True"),
        ({"model_args": {"img_size": [32, 32], "depth": 2, "fc_norm": True}}, "fc_norm.weight"),
        ({"pretrained_cfg": {"mean": "grey"}}, "config.json: pretrained_cfg.mean: expected a list, got 'grey'"),
    ],
)
def test_a_folder_of_timms_that_lies_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_export(timm_target(make_noise_backbone()), NOISE_ORIGIN, tmp_path / "out")
    file = tmp_path / "out" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError) as caught:
        load_backbone(tmp_path / "out")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
