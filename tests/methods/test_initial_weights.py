"""Weights to start from: of timm, of a run, of neither."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from c2fmae.core.checkpoint import Checkpoint, save_checkpoint
from c2fmae.core.errors import UserError
from c2fmae.methods import MaskedAutoencoding
from c2fmae.methods.masked.initial_weights import load_initial_weights
from tests.methods.tiny_methods import build_tiny_method, perturb_parameters, to_float64
from tests.models.backbones.official_mae import mae_tokens, mae_weights, multimae_tokens, multimae_weights, sincos_table

pytestmark = pytest.mark.numeric

KEEP = "encoder.keep_positions=true"


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    vit = timm.create_model("test_vit", num_classes=7, img_size=32)
    perturb_parameters(vit)
    return vit


def written(vit: nn.Module, path: Path, **changes: torch.Tensor) -> str:
    save_file({**vit.state_dict(), **changes}, path)
    return f"timm:test_vit@{path}"


def refused(method: MaskedAutoencoding, source: str) -> str:
    before = {name: tensor.clone() for name, tensor in method.model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_initial_weights(method, source)
    for name, tensor in method.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    return str(caught.value)


def test_a_timm_vits_features_are_ours_from_the_first_step(vit: nn.Module, tmp_path: Path) -> None:
    method = build_tiny_method("mae", KEEP)  # with a norm, as timm's features have
    said = load_initial_weights(method, written(vit, tmp_path / "vit.safetensors"))
    assert said.startswith("78 of 97 tensors are from timm:test_vit@")
    assert said.endswith("; drawn anew: decoder.blocks, decoder.entry, decoder.norm, heads.rgb")
    photos = torch.randn(2, 3, 32, 32)
    method.model.eval()
    with torch.no_grad():
        ours = method.model.encode(photos)  # type: ignore[operator]
        theirs = vit.eval().forward_features(photos)  # type: ignore[operator]
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_its_positions_are_brought_to_another_grid(vit: nn.Module, tmp_path: Path) -> None:
    method = build_tiny_method("mae", KEEP, size=(64, 64))
    load_initial_weights(method, written(vit, tmp_path / "vit.safetensors"))
    table = method.model.get_submodule("encoder").pos_embed
    assert isinstance(table, torch.Tensor)
    assert table.shape == (1, 16, 64)
    assert table.std() > 0.05  # not zeros, not ones


def test_what_a_file_lacks_is_not_left_to_chance(vit: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    save_file({k: v for k, v in vit.state_dict().items() if not k.startswith("blocks.3.")}, path)
    message = refused(build_tiny_method("mae", KEEP), f"timm:test_vit@{path}")
    assert message.startswith(f"init: timm:test_vit@{path}: 12 missing tensors (blocks.3.norm1.weight, ")


def test_another_vit_than_the_encoder_is_refused(vit: nn.Module, tmp_path: Path) -> None:
    source = written(vit, tmp_path / "vit.safetensors").replace("test_vit@", "vit_tiny_patch16_224@")
    assert refused(build_tiny_method("mae"), source) == (
        f"init: {source} is a vit_tiny_patch16_224, but the encoder is a test_vit. "
        "Set method.encoder.name=vit_tiny_patch16_224"
    )


def test_files_that_are_none_are_sentences(tmp_path: Path) -> None:
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    for name in ("junk.safetensors", "none.safetensors"):
        message = refused(build_tiny_method("mae", KEEP), f"timm:test_vit@{tmp_path / name}")
        assert message.startswith(f"init: {tmp_path / name}: ")
        assert "\n" not in message
    message = refused(build_tiny_method("mae"), str(tmp_path / "nowhere"))
    assert message.startswith(f"init: {tmp_path / 'nowhere'}: does not exist. Use a run directory, a checkpoint, ")


def test_an_official_mae_gives_its_features_from_the_first_step(tmp_path: Path) -> None:
    weights = mae_weights(width=64, depth=6, ratio=3, side=32)
    torch.save({"model": weights}, tmp_path / "mae.pth")
    method = build_tiny_method(
        "mae", size=(32, 64)
    )  # its heads are the config's, since the file does not say how many it has
    said = load_initial_weights(method, str(tmp_path / "mae.pth"))
    assert said.endswith("; drawn anew: decoder.blocks, decoder.entry, decoder.norm, heads.rgb")
    photos = torch.randn(2, 3, 32, 64)
    table = torch.cat([torch.zeros(1, 64), sincos_table((2, 4), 64, "column")]).unsqueeze(0)
    with torch.no_grad():
        ours = method.model.encode(photos)  # type: ignore[operator]
    torch.testing.assert_close(ours, mae_tokens(weights, photos, 2, table), atol=1e-5, rtol=1e-5)


def test_an_official_multimae_gives_its_features_from_the_first_step(tmp_path: Path) -> None:
    weights = multimae_weights(width=64, depth=6, grid=(2, 2), tasks=("rgb", "semseg"))
    torch.save({"model": weights}, tmp_path / "multimae.pth")
    source = str(tmp_path / "multimae.pth")
    setting = "encoder.mlp_ratio=4"
    assert refused(build_tiny_method("c2fmae", setting), source) == (
        f"init: {source} comes with its own positions. Set method.encoder.keep_positions=true"
    )
    method = build_tiny_method("c2fmae", setting, KEEP)
    said = load_initial_weights(method, source)
    assert "embeddings.instance" in said
    assert "embeddings.semantic" not in said
    photos = torch.randn(2, 3, 32, 32).double()
    with torch.no_grad():
        ours = method.model.double().encode(photos)  # type: ignore[operator]
    theirs = multimae_tokens(to_float64(weights), {"rgb": photos}, 2)
    torch.testing.assert_close(ours, torch.cat([theirs[:, -1:], theirs[:, :-1]], 1), atol=1e-5, rtol=1e-5)


def test_a_source_that_says_it_has_other_heads_is_refused(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    sizes: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 6, "intermediate_size": 192, "image_size": 32}
    ViTModel(ViTConfig(**sizes, num_attention_heads=4)).save_pretrained(tmp_path)
    assert refused(build_tiny_method("mae", KEEP), str(tmp_path)) == (
        f"init: {tmp_path} has 4 attention heads, but the encoder 2. Set method.encoder.num_heads=4"
    )
    said = load_initial_weights(build_tiny_method("mae", KEEP, "encoder.num_heads=4"), str(tmp_path))
    assert said.startswith(f"78 of 97 tensors are from {tmp_path}; ")


def saved(method: MaskedAutoencoding, folder: Path) -> Path:
    perturb_parameters(method.model)
    tensors = {f"model/{name}": tensor for name, tensor in method.model.state_dict().items()}
    return save_checkpoint(folder, Checkpoint(5, tensors, {"kind": "pretraining"}))


def test_a_checkpoint_gives_all_that_fits(tmp_path: Path) -> None:
    donor, method = build_tiny_method(), build_tiny_method()
    said = load_initial_weights(method, str(saved(donor, tmp_path)))
    ours, theirs = method.model.state_dict(), donor.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert said == f"{len(ours)} of {len(ours)} tensors are from {tmp_path / 'step-00000005'}; drawn anew: none"


def test_a_head_for_other_classes_is_drawn_anew(tmp_path: Path) -> None:
    donor, method = build_tiny_method(), build_tiny_method("c2fmae", "channels.semantic=9")
    said = load_initial_weights(method, str(saved(donor, tmp_path)))
    assert said.endswith("; drawn anew: embeddings.semantic, heads.semantic")
    weight, theirs = (each.model.state_dict()["heads.rgb.weight"] for each in (method, donor))
    assert torch.equal(weight, theirs)


def test_an_encoder_of_another_width_does_not_fit(tmp_path: Path) -> None:
    path = saved(build_tiny_method(), tmp_path)
    message = refused(build_tiny_method("c2fmae", "encoder.dim=32", "encoder.num_heads=2"), str(path))
    assert message.startswith(f"init: {path} does not fit the encoder 'test_vit': ")
    assert message.endswith(" of its tensors are missing or of another shape, the first is encoder.cls_token")


def test_a_run_without_a_whole_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    assert refused(build_tiny_method(), str(tmp_path)) == f"init: {tmp_path}: has no intact checkpoint"


def test_a_vit_that_brings_positions_is_not_given_others(vit: nn.Module, tmp_path: Path) -> None:
    source = written(vit, tmp_path / "vit.safetensors")
    message = f"init: {source} comes with its own positions. Set method.encoder.keep_positions=true"
    assert refused(build_tiny_method("mae"), source) == message


def test_positions_that_are_kept_start_as_sines_and_cosines_until_weights_are_loaded() -> None:
    given, computed = (build_tiny_method("mae", f"encoder.keep_positions={keep}").model for keep in ("true", "false"))
    given.load_state_dict({**given.state_dict(), **computed.state_dict()})
    photos = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(given.encode(photos), computed.encode(photos))  # type: ignore[operator]
