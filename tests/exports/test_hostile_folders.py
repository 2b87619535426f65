"""Exported directories from untrusted sources: an invalid config is one error message that names the file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from c2fmae.core.errors import UserError
from c2fmae.exports import export, read_autoencoder
from c2fmae.models.backbones import load_backbone
from c2fmae.models.backbones.export_reader import read_export
from tests.exports.noise_sources import write_noise_run


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("hostile")
    export("safetensors", write_noise_run(place / "run"), place / "out", part="autoencoder")
    return place / "out"


def changed(exported: Path, place: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The folder again, its config changed."""
    place.mkdir()
    config = json.loads((exported / "config.json").read_text())
    change(config)
    (place / "config.json").write_text(json.dumps(config))
    (place / "model.safetensors").hardlink_to(exported / "model.safetensors")
    return place


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another format": (
        lambda c: c.update(format="c2fmae-masks-1"),
        "config.json: format: expected an export of c2fmae, got 'c2fmae-masks-1'. Export it again",
    ),
    "a newer version": (
        lambda c: c.update(version=2),
        "config.json: has version 2 of a newer c2fmae, this one reads 1. Update c2fmae",
    ),
    "a version that is none": (
        lambda c: c.update(version="one"),
        "config.json: version: expected 1, got 'one'. Export it again",
    ),
    "an unknown key": (
        lambda c: c.update(speck=1),
        "config.json: speck: no such setting. Did you mean 'spec'?",
    ),
    "a missing spec": (lambda c: c.pop("spec"), "config.json: spec: is required"),
    "a spec of another kind": (
        lambda c: c.update(spec=[1]),
        "config.json: spec: expected a mapping of settings (key: value), got [1]",
    ),
    "an unknown granularity": (
        lambda c: c["spec"].update(channels={"smell": 3}),
        "config.json: spec: no granularity named 'smell'. Known: ",
    ),
    "a size of another kind": (
        lambda c: c["spec"].update(image_size=[32, "wide"]),
        "config.json: spec.image_size.1: input should be a valid integer, unable to parse string as an integer, "
        "got 'wide'",
    ),
    "a folder for an encoder": (
        lambda c: c["spec"]["encoder"].update(name="local-dir:/etc"),
        "encoder: timm has no model named 'local-dir:/etc'. See timm.list_models()",
    ),
    "an unbounded depth": (
        lambda c: c["spec"]["encoder"].update(depth=10**9),
        "config.json: describes 1,000,000,000 blocks, but model.safetensors holds 81 tensors. Use the config of these "
        "weights",
    ),
    "an unbounded width": (
        lambda c: c["spec"]["encoder"].update(dim=4 * 10**6, num_heads=4),
        "Use the config of these weights",
    ),
    "an unbounded image size": (
        lambda c: c["spec"].update(image_size=[16 * 10**6, 16 * 10**6]),
        "Use the config of these weights",
    ),
    "unbounded classes": (
        lambda c: c["spec"]["channels"].update(semantic=10**12),
        "Use the config of these weights",
    ),
    "another ViT": (
        lambda c: c["spec"]["encoder"].update(name="vit_base_patch16_224"),
        "Use the config of these weights",
    ),
    "other classes": (
        lambda c: c["spec"]["channels"].update(semantic=7),
        "embeddings.semantic.classes.weight has shape (7, 64), expected (8, 64). Use weights that match the config",
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_config_that_does_not_match_its_weights_is_a_one_line_error(
    kind: str, exported: Path, tmp_path: Path
) -> None:
    change, message = CHANGES[kind]
    folder = changed(exported, tmp_path / "out", change)
    with pytest.raises(UserError) as caught:
        load_backbone(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "config.json: is not JSON ("),
        ("[1, 2]", "config.json: expected a JSON object, got a list"),
        ("[" * 100_000, "config.json: is nested more than 64 levels deep"),
        ('{"a": ' + "9" * 10_000 + "}", "config.json: is not JSON ("),
        (" " * 2_000_000, "config.json: has 2,000,000 bytes, expected JSON of at most 1,048,576"),
    ],
)
def test_a_malformed_config_is_a_one_line_error(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError) as caught:
        read_export(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / message}")


def test_a_missing_file_is_an_error(tmp_path: Path, exported: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path / 'config.json'}: cannot be read: No such file"):
        read_export(tmp_path)
    (tmp_path / "config.json").write_bytes((exported / "config.json").read_bytes())
    with pytest.raises(UserError, match=f"{tmp_path / 'model.safetensors'}: cannot be read: "):
        read_export(tmp_path)


METHODS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "an unknown setting": (
        lambda m: m["decoder"]["options"].update(dept=1),
        "config.json: method: decoder.options.dept: decoder 'cascaded' has no such option. Did you mean 'depth'?",
    ),
    "an unbounded decoder depth": (
        lambda m: m["decoder"]["options"].update(depth=10**9),
        "Use the config of these weights",
    ),
    "a wide decoder": (lambda m: m["decoder"]["options"].update(dim=2**20), "Use the config of these weights"),
    "another decoder": (
        lambda m: m.update(decoder="joint"),
        "model.safetensors: does not match its config.json: Error(s) in loading state_dict",
    ),
}


@pytest.mark.parametrize("kind", METHODS)
def test_a_method_config_that_does_not_match_is_a_one_line_error(kind: str, exported: Path, tmp_path: Path) -> None:
    change, message = METHODS[kind]
    folder = changed(exported, tmp_path / "out", lambda config: change(config["method"]))
    with pytest.raises(UserError) as caught:
        read_autoencoder(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_reading_an_autoencoder_needs_an_exported_autoencoder(exported: Path, tmp_path: Path) -> None:
    def encoder_alone(config: dict[str, Any]) -> None:
        config.update(format="c2fmae-backbone", method=None)

    folder = changed(exported, tmp_path / "out", encoder_alone)
    with pytest.raises(UserError) as caught:
        read_autoencoder(folder)
    assert str(caught.value) == f"{folder}: holds only an encoder. Export the run again with --part autoencoder"


def test_a_missing_tensor_is_an_error_unless_allowed(exported: Path, tmp_path: Path) -> None:
    tensors = load_file(exported / "model.safetensors")
    del tensors["encoder.blocks.0.attn.qkv.weight"]
    (tmp_path / "config.json").write_bytes((exported / "config.json").read_bytes())
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"1 missing tensor \(encoder.blocks.0.attn.qkv.weight\)"):
        load_backbone(tmp_path)
    backbone = load_backbone(tmp_path, allow_missing=["encoder.blocks.0.attn.qkv.*"])
    assert backbone.load_report.missing == ["encoder.blocks.0.attn.qkv.weight"]
    assert torch.isfinite(backbone.tokens(torch.zeros(1, 3, 32, 32))).all()
    again = load_backbone(tmp_path, allow_missing=["encoder.blocks.0.attn.qkv.*"]).state_dict()
    assert all(torch.equal(each, again[name]) for name, each in backbone.state_dict().items())
