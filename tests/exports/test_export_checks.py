"""An export is complete and verified or not written at all, and never overwrites."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from c2fmae.core.errors import RunError, UserError
from c2fmae.core.tensor_file import write_tensors
from c2fmae.exports import as_hf, as_safetensors, as_timm, export
from c2fmae.exports.example_inputs import example_images, example_maps
from c2fmae.exports.export import write_export
from c2fmae.exports.target import ExportComparison, compare_tensors
from c2fmae.models.backbones import load_backbone
from tests.exports.noise_sources import NOISE_ORIGIN, make_noise_backbone, write_noise_run
from tests.methods.tiny_methods import build_tiny_method

pytestmark = pytest.mark.numeric


def mixed_up(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """A constant shift would be removed by the next norm."""
    return {**tensors, name: tensors[name].flatten().roll(1).view_as(tensors[name])}


def broken_writer(name: str) -> Any:
    return lambda path, tensors: write_tensors(path, mixed_up(tensors, name))


@pytest.mark.parametrize(
    "name", ["pos_embed", "cls_token", "patch_embed.proj.bias", "blocks.1.mlp.fc2.bias", "norm.weight"]
)
def test_verification_detects_a_wrong_weight_for_timm(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(as_timm, "write_tensors", broken_writer(name))
    with pytest.raises(RunError, match="was not written, because timm .* computes other outputs"):
        write_export(as_timm.timm_target(make_noise_backbone()), NOISE_ORIGIN, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_verification_detects_a_wrong_normalisation_for_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config_of = as_timm._hub_config

    def wrong(*args: Any) -> dict[str, Any]:
        config = config_of(*args)
        config["pretrained_cfg"]["std"][1] = 0.3
        return config

    monkeypatch.setattr(as_timm, "_hub_config", wrong)
    with pytest.raises(RunError, match="computes other outputs"):
        write_export(as_timm.timm_target(make_noise_backbone()), NOISE_ORIGIN, tmp_path / "out")


def test_verification_detects_a_wrong_weight_for_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = as_hf.to_hub_state_dict
    layer = "encoder.layer.1.attention.attention.key.weight"
    monkeypatch.setattr(as_hf, "to_hub_state_dict", lambda vit: mixed_up(names(vit), layer))
    with pytest.raises(RunError, match="was not written, because transformers .* computes other outputs"):
        write_export(as_hf.hf_target(make_noise_backbone()), NOISE_ORIGIN, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["encoder.pos_embed", "embeddings.rgb.proj.weight"])
def test_verification_detects_a_wrong_weight_in_safetensors(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(as_safetensors, "write_tensors", broken_writer(name))
    with pytest.raises(RunError, match="was not written, because safetensors .* computes other outputs"):
        write_export(
            as_safetensors.safetensors_target(make_noise_backbone(keep_positions=True)), NOISE_ORIGIN, tmp_path / "out"
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["decoder.entries.0.project.weight", "heads.semantic.bias", "embeddings.instance.classes.weight"]
)
def test_verification_detects_a_wrong_weight_of_an_autoencoder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_noise_run(tmp_path / "run")
    assert name in build_tiny_method().model.state_dict()
    monkeypatch.setattr(as_safetensors, "write_tensors", broken_writer(name))
    with pytest.raises(RunError, match="predictions of semantic, instance, rgb of 32×32"):
        export("safetensors", run, tmp_path / "out", part="autoencoder")
    assert not (tmp_path / "out").exists()


def test_the_output_directory_appears_only_after_verification(tmp_path: Path) -> None:
    out, seen = tmp_path / "out", list[bool]()
    target = as_timm.timm_target(make_noise_backbone())

    def watched(folder: Path) -> Sequence[ExportComparison]:
        seen.append(out.exists() or folder.name.startswith("out"))
        return target.compare(folder)

    write_export(dataclasses.replace(target, compare=watched), NOISE_ORIGIN, out)
    assert seen == [False]
    assert {path.name for path in out.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert list(tmp_path.iterdir()) == [out]


def test_leftovers_of_a_killed_export_are_removed_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / ".out.unfinished"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    (left / "of an older version").touch()
    write_export(as_timm.timm_target(make_noise_backbone()), NOISE_ORIGIN, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out" / "of an older version").exists()


def test_an_interrupted_export_leaves_nothing(tmp_path: Path) -> None:
    target = as_timm.timm_target(make_noise_backbone())

    def interrupted(folder: Path) -> Sequence[ExportComparison]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_export(dataclasses.replace(target, compare=interrupted), NOISE_ORIGIN, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_existing_files_are_never_overwritten(tmp_path: Path) -> None:
    source = write_noise_run(tmp_path / "run")
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    for place in (out, out / "notes.txt"):
        with pytest.raises(UserError) as caught:
            export("timm", source, place)
        message = (
            f"{place}: already exists, and an export never overwrites files. Choose another directory, or remove it"
        )
        assert str(caught.value) == message
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    (out / "notes.txt").unlink()
    export("timm", source, out)
    assert (out / "model.safetensors").exists()


def test_an_error_names_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as caught:
        write_export(as_timm.timm_target(make_noise_backbone()), NOISE_ORIGIN, tmp_path / "file" / "out")
    assert str(caught.value).startswith(f"{tmp_path / 'file'}: cannot be written: ")


def test_unknown_formats_and_parts_suggest_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no export named 'tim'. Did you mean 'timm'?"):
        export("tim", tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="no part named 'encodr'. Did you mean 'encoder'?"):
        export("safetensors", tmp_path, tmp_path / "out", part="encodr")


@pytest.mark.parametrize("part", ["autoencoder", "rgb"])
def test_only_safetensors_exports_have_parts(part: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        export("timm", tmp_path, tmp_path / "out", part=part)
    message = f"export timm: part={part} is not supported, only safetensors has parts. Omit part, or export safetensors"
    assert str(caught.value) == message


def test_exporting_an_autoencoder_needs_a_decoder(tmp_path: Path) -> None:
    write_export(as_safetensors.safetensors_target(make_noise_backbone()), NOISE_ORIGIN, tmp_path / "encoder")
    with pytest.raises(UserError) as caught:
        export("safetensors", tmp_path / "encoder", tmp_path / "out", part="autoencoder")
    message = "has no decoder. Use --part autoencoder only with a pre-training run or one of its checkpoints"
    assert str(caught.value) == f"{tmp_path / 'encoder'}: {message}"


def test_weights_that_are_not_finite_are_not_exported(tmp_path: Path) -> None:
    backbone = make_noise_backbone()
    with torch.no_grad():
        backbone.embeddings["rgb"].get_parameter("proj.bias")[0] = torch.nan
    with pytest.raises(RunError, match="not all values are finite, already before the export. Use another checkpoint"):
        write_export(as_timm.timm_target(backbone), NOISE_ORIGIN, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_tolerance_is_absolute_for_small_features_and_relative_for_large_ones() -> None:
    one = torch.tensor([1.0, -5.0])
    assert compare_tensors("x", [one], [one]).tolerance == 1e-4
    assert compare_tensors("x", [one + 0.9e-4], [one]).is_within_tolerance
    assert not compare_tensors("x", [one - 1.1e-4], [one]).is_within_tolerance
    assert not compare_tensors("x", [one * torch.nan], [one]).is_within_tolerance
    assert compare_tensors("x", [100 * one], [100 * one]).tolerance == pytest.approx(5e-3)
    both = compare_tensors("x", [100 * one, one - 1.1e-4], [100 * one, one])  # each tensor has its own tolerance
    assert (both.is_within_tolerance, both.tolerance) == (False, 1e-4)
    reported = compare_tensors("x", [one + 1], [one], reason="on purpose")
    assert reported.is_within_tolerance
    assert str(reported) == "x: 1.0e+00 (not checked: on purpose)"
    with pytest.raises(RunError, match=r"x: the reloaded model returns shape \(1,\) instead of \(2,\)"):
        compare_tensors("x", [one[:1]], [one])


def test_example_inputs_are_reproducible_and_varied(tmp_path: Path) -> None:
    assert torch.equal(example_images((24, 40), 4), example_images((24, 40), 4))
    images = example_images((64, 64), 3).float()
    assert images.std() > 20
    assert not torch.equal(images[0], images[1])
    backbone = load_backbone(write_noise_run(tmp_path / "run"))
    maps = example_maps(backbone, (32, 48))
    assert {name: tuple(each.shape) for name, each in maps.items()} == {
        "semantic": (2, 8, 12),
        "instance": (2, 8, 12),
        "rgb": (2, 3, 32, 48),
    }
    assert maps["semantic"].max() == 5
    assert backbone.tokens(maps).shape == (2, 1 + 3 * 6, 64)
