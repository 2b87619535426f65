"""Initial weights from timm, official files and checkpoints."""

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
from c2fmae.methods.initial_weights import load_initial_weights
from tests.methods.tiny_methods import build_tiny_method, perturb_parameters, to_float64
from tests.models.backbones.official_mae import mae_tokens, mae_weights, multimae_tokens, multimae_weights, sincos_table

pytestmark = pytest.mark.numeric

KEEP_POSITIONS = "encoder.keep_positions=true"


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    vit = timm.create_model("test_vit", num_classes=7, img_size=32)
    perturb_parameters(vit)
    return vit


def write_timm_file(vit: nn.Module, path: Path, **changes: torch.Tensor) -> str:
    save_file({**vit.state_dict(), **changes}, path)
    return f"timm:test_vit@{path}"


def load_error(method: MaskedAutoencoding, source: str) -> str:
    before = {name: tensor.clone() for name, tensor in method.model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_initial_weights(method, source)
    for name, tensor in method.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    return str(caught.value)


def test_features_of_a_loaded_timm_vit_equal_timms(vit: nn.Module, tmp_path: Path) -> None:
    method = build_tiny_method("mae", KEEP_POSITIONS)  # with a norm, like timm's features
    initial = load_initial_weights(method, write_timm_file(vit, tmp_path / "vit.safetensors"))
    assert str(initial) == (
        f"timm:test_vit@{tmp_path / 'vit.safetensors'}: 78 of 97 tensors loaded; "
        "newly initialised: decoder.blocks, decoder.entry, decoder.norm, heads.rgb"
    )
    images = torch.randn(2, 3, 32, 32)
    method.model.eval()
    with torch.no_grad():
        ours = method.model.encode(images)  # type: ignore[operator]
        theirs = vit.eval().forward_features(images)  # type: ignore[operator]
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_positions_are_resized_to_another_grid(vit: nn.Module, tmp_path: Path) -> None:
    method = build_tiny_method("mae", KEEP_POSITIONS, size=(64, 64))
    load_initial_weights(method, write_timm_file(vit, tmp_path / "vit.safetensors"))
    table = method.model.get_submodule("encoder").pos_embed
    assert isinstance(table, torch.Tensor)
    assert table.shape == (1, 16, 64)
    assert table.std() > 0.05  # neither constant nor small noise


def test_a_file_with_missing_tensors_is_rejected(vit: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    save_file({k: v for k, v in vit.state_dict().items() if not k.startswith("blocks.3.")}, path)
    message = load_error(build_tiny_method("mae", KEEP_POSITIONS), f"timm:test_vit@{path}")
    assert message.startswith(f"init: timm:test_vit@{path}: 12 missing tensors (blocks.3.norm1.weight, ")


def test_a_vit_other_than_the_encoder_is_rejected(vit: nn.Module, tmp_path: Path) -> None:
    source = write_timm_file(vit, tmp_path / "vit.safetensors").replace("test_vit@", "vit_tiny_patch16_224@")
    assert load_error(build_tiny_method("mae"), source) == (
        f"init: {source}: expected the encoder test_vit, got vit_tiny_patch16_224. "
        "Set method.encoder.name=vit_tiny_patch16_224"
    )


def test_unreadable_files_are_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    for name in ("junk.safetensors", "none.safetensors"):
        message = load_error(build_tiny_method("mae", KEEP_POSITIONS), f"timm:test_vit@{tmp_path / name}")
        assert message.startswith(f"init: {tmp_path / name}: ")
        assert "\n" not in message
    message = load_error(build_tiny_method("mae"), str(tmp_path / "nowhere"))
    assert message.startswith(f"init: {tmp_path / 'nowhere'}: does not exist. Use a run directory, a checkpoint, ")


def test_features_of_a_loaded_official_mae_equal_its_own(tmp_path: Path) -> None:
    weights = mae_weights(width=64, depth=6, ratio=3, side=32)
    torch.save({"model": weights}, tmp_path / "mae.pth")
    # The file does not store the number of heads, so it is that of the config.
    method = build_tiny_method("mae", size=(32, 64))
    initial = load_initial_weights(method, str(tmp_path / "mae.pth"))
    assert str(initial).endswith("; newly initialised: decoder.blocks, decoder.entry, decoder.norm, heads.rgb")
    images = torch.randn(2, 3, 32, 64)
    table = torch.cat([torch.zeros(1, 64), sincos_table((2, 4), 64, "column")]).unsqueeze(0)
    with torch.no_grad():
        ours = method.model.encode(images)  # type: ignore[operator]
    torch.testing.assert_close(ours, mae_tokens(weights, images, 2, table), atol=1e-5, rtol=1e-5)


def test_features_of_a_loaded_official_multimae_equal_its_own(tmp_path: Path) -> None:
    weights = multimae_weights(width=64, depth=6, grid=(2, 2), tasks=("rgb", "semseg"))
    torch.save({"model": weights}, tmp_path / "multimae.pth")
    source = str(tmp_path / "multimae.pth")
    setting = "encoder.mlp_ratio=4"
    assert load_error(build_tiny_method("c2fmae", setting), source) == (
        f"init: {source}: has position embeddings of its own. Set method.encoder.keep_positions=true"
    )
    method = build_tiny_method("c2fmae", setting, KEEP_POSITIONS)
    initial = load_initial_weights(method, source)
    embeddings = {name.rpartition(".")[0] for name in initial.initialised if name.startswith("embeddings.")}
    assert embeddings == {"embeddings.instance.classes", "embeddings.instance.proj"}
    images = torch.randn(2, 3, 32, 32).double()
    with torch.no_grad():
        ours = method.model.double().encode(images)  # type: ignore[operator]
    theirs = multimae_tokens(to_float64(weights), {"rgb": images}, 2)
    torch.testing.assert_close(ours, torch.cat([theirs[:, -1:], theirs[:, :-1]], 1), atol=1e-5, rtol=1e-5)


def test_a_source_with_another_number_of_heads_is_rejected(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    sizes: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 6, "intermediate_size": 192, "image_size": 32}
    ViTModel(ViTConfig(**sizes, num_attention_heads=4)).save_pretrained(tmp_path)
    assert load_error(build_tiny_method("mae", KEEP_POSITIONS), str(tmp_path)) == (
        f"init: {tmp_path}: expected 2 attention heads, got 4. Set method.encoder.num_heads=4"
    )
    initial = load_initial_weights(build_tiny_method("mae", KEEP_POSITIONS, "encoder.num_heads=4"), str(tmp_path))
    assert (len(initial.loaded), len(initial.initialised)) == (78, 19)


def save_as_checkpoint(method: MaskedAutoencoding, folder: Path) -> Path:
    perturb_parameters(method.model)
    tensors = {f"model/{name}": tensor for name, tensor in method.model.state_dict().items()}
    return save_checkpoint(folder, Checkpoint(5, tensors, {"kind": "pretraining"}))


def test_all_tensors_of_a_checkpoint_are_loaded(tmp_path: Path) -> None:
    source, method = build_tiny_method(), build_tiny_method()
    initial = load_initial_weights(method, str(save_as_checkpoint(source, tmp_path)))
    ours, theirs = method.model.state_dict(), source.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    path = tmp_path / "step-00000005"
    assert str(initial) == f"{path}: {len(ours)} of {len(ours)} tensors loaded; newly initialised: none"


def test_a_head_for_other_classes_is_newly_initialised(tmp_path: Path) -> None:
    source, method = build_tiny_method(), build_tiny_method("c2fmae", "channels.semantic=9")
    initial = load_initial_weights(method, str(save_as_checkpoint(source, tmp_path)))
    assert str(initial).endswith("; newly initialised: embeddings.semantic, heads.semantic")
    weight, theirs = (model.state_dict()["heads.rgb.weight"] for model in (method.model, source.model))
    assert torch.equal(weight, theirs)


def test_an_encoder_of_another_width_is_rejected(tmp_path: Path) -> None:
    path = save_as_checkpoint(build_tiny_method(), tmp_path)
    message = load_error(build_tiny_method("c2fmae", "encoder.dim=32", "encoder.num_heads=2"), str(path))
    assert message.startswith(
        f"init: {path}: does not fit the encoder 'test_vit': the source has width 64 and 6 blocks, the encoder "
        "width 32 and 6 blocks; "
    )
    assert message.endswith(
        " tensors are missing or of another shape, such as encoder.cls_token. "
        "Use the recipe of the source's size, or set method.encoder to that of the source"
    )


def test_a_run_without_a_complete_checkpoint_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    assert load_error(build_tiny_method(), str(tmp_path)) == f"init: {tmp_path}: has no intact checkpoint"


def test_a_vit_with_its_own_positions_requires_keep_positions(vit: nn.Module, tmp_path: Path) -> None:
    source = write_timm_file(vit, tmp_path / "vit.safetensors")
    message = f"init: {source}: has position embeddings of its own. Set method.encoder.keep_positions=true"
    assert load_error(build_tiny_method("mae"), source) == message


def test_stored_positions_are_sines_and_cosines_before_weights_are_loaded() -> None:
    stored_positions, computed_positions = (
        build_tiny_method("mae", f"encoder.keep_positions={keep}").model for keep in ("true", "false")
    )
    stored_positions.load_state_dict({**stored_positions.state_dict(), **computed_positions.state_dict()})
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(stored_positions.encode(images), computed_positions.encode(images))  # type: ignore[operator]


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_weights_of_three_channels_are_converted_to_any_number(vit: nn.Module, tmp_path: Path, channels: int) -> None:
    source = write_timm_file(vit, tmp_path / "vit.safetensors")
    colour, own = (
        build_tiny_method("mae", KEEP_POSITIONS),
        build_tiny_method("mae", KEEP_POSITIONS, f"channels={{rgb: {channels}}}"),
    )
    load_initial_weights(colour, source)
    initial = load_initial_weights(own, source)
    assert str(initial).endswith(
        f"\n{source}: images have {channels} channel{'s' * (channels > 1)} instead of 3:"
        " each new channel is embedded as the mean of the old"
        " ones"
    )
    assert "embeddings" not in str(initial).partition("newly initialised")[2].partition("\n")[0]
    grey = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        colour_tokens, own_tokens = [
            method.model.eval().encode(grey.expand(-1, count, -1, -1))  # type: ignore[operator]
            for method, count in ((colour, 3), (own, channels))
        ]
    assert torch.allclose(colour_tokens, own_tokens, atol=1e-5)


def test_the_heads_of_a_run_are_converted_with_its_embedding(tmp_path: Path) -> None:
    colour, own = build_tiny_method("mae"), build_tiny_method("mae", "channels={rgb: 1}")
    tensors = {f"model/{name}": tensor for name, tensor in colour.model.state_dict().items()}
    metadata = {
        "kind": "pretraining",
        "backbone": colour.config.backbone_spec(()).model_dump(mode="json"),
        "config": {"method": colour.config.model_dump(mode="json")},
    }
    checkpoint = save_checkpoint(tmp_path / "checkpoints", Checkpoint(1, tensors, metadata))
    initial = load_initial_weights(own, str(checkpoint))
    assert initial.initialised == ()
    name = next(name for name in own.model.state_dict() if name.startswith("heads.rgb") and name.endswith("weight"))
    expected = colour.model.state_dict()[name].unflatten(0, (-1, 3)).mean(dim=1)
    assert torch.equal(own.model.state_dict()[name], expected)
