"""Runs and checkpoints as backbones: the trained encoder is loaded, and no code in their files is executed."""

from pathlib import Path

import pytest
import torch

from c2fmae.core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from c2fmae.core.errors import UserError
from c2fmae.exports.as_safetensors import safetensors_target
from c2fmae.exports.export import write_export
from c2fmae.methods import MaskedAutoencoding
from c2fmae.models import sincos_positions
from c2fmae.models.backbones import load_backbone
from tests.exports.noise_sources import NOISE_ORIGIN
from tests.methods.tiny_methods import build_tiny_method, draw_noise_scenes, perturb_parameters

pytestmark = pytest.mark.numeric


def saved(run: Path, name: str = "c2fmae", *overrides: str, config: str = "") -> MaskedAutoencoding:
    method = build_tiny_method(name, *overrides)
    perturb_parameters(method.model)
    tensors = {f"model/{key}": each for key, each in method.model.state_dict().items()}
    tensors |= {f"ema/{key}": each + 1 for key, each in method.model.named_parameters()}
    backbone = {**method.config.backbone_spec().model_dump(mode="json"), "class_names": ["sky", "sea"]}
    metadata = {"kind": "pretraining", "backbone": backbone}
    for step in (5, 10):
        save_checkpoint(run / "checkpoints", Checkpoint(step, tensors, metadata))
    (run / "config.yaml").write_text(config)
    return method


def test_a_run_and_its_checkpoints_give_the_trained_encoder(tmp_path: Path) -> None:
    method = saved(tmp_path)
    images = method.prepare_inputs(draw_noise_scenes())["rgb"]
    sources = (tmp_path, tmp_path / "checkpoints" / "step-00000005")
    for source in sources:
        backbone = load_backbone(source)
        with torch.no_grad():
            expected = backbone.encoder.norm(method.model.encode(images))  # type: ignore[operator]
            torch.testing.assert_close(backbone.tokens(images), expected)
        assert set(backbone.load_report.unused) == {"decoder", "heads"}
        assert backbone.spec.class_names == ("sky", "sea")
    assert load_backbone(tmp_path).load_report.notes[0] == "step 10"
    assert load_backbone(tmp_path, step=5).load_report.notes[0] == "step 5"


def test_averaged_weights_are_loaded_on_request(tmp_path: Path) -> None:
    saved(tmp_path)
    plain, averaged = load_backbone(tmp_path), load_backbone(tmp_path, use_ema=True)
    difference = averaged.state_dict()["encoder.cls_token"] - plain.state_dict()["encoder.cls_token"]
    assert torch.allclose(difference, torch.ones(1))
    assert averaged.load_report.notes[0] == "step 10, averaged weights"


def test_averages_of_a_part_of_the_model_replace_this_part(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / "checkpoints" / "step-00000010"
    checkpoint = load_checkpoint(path)
    names = [name for name in checkpoint.tensors if name.startswith(("ema/decoder.", "ema/heads."))]
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in names}
    tensors["ema/encoder.cls_token"] = tensors["ema/encoder.cls_token"] + 1
    complete = load_backbone(tmp_path, use_ema=True).state_dict()
    save_checkpoint(path.parent, Checkpoint(10, tensors, checkpoint.metadata))
    averaged = load_backbone(tmp_path, use_ema=True).state_dict()
    assert torch.equal(averaged.pop("encoder.cls_token"), complete.pop("encoder.cls_token") + 1)
    assert all(torch.equal(tensor, complete[name]) for name, tensor in averaged.items())


def test_stored_positions_are_resized_to_another_image_size(tmp_path: Path) -> None:
    saved(tmp_path, "mae", "encoder.keep_positions=true")
    assert load_backbone(tmp_path, image_size=(64, 96)).load_report.resized == {
        "encoder.pos_embed": "2×2 → 4×6, bicubic with antialiasing, in float32"
    }


def test_sines_and_cosines_are_stretched_to_another_image_size(tmp_path: Path) -> None:
    saved(tmp_path)
    trained, larger = load_backbone(tmp_path), load_backbone(tmp_path, image_size=(64, 96))
    assert trained.spec.encoder.position_grid is None
    assert larger.spec.encoder.position_grid == (2, 2)
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    positions = trained.encoder.positions((4, 6), torch.device("cpu"))
    assert torch.equal(positions, sincos_positions((4, 6), 64, trained_grid=(2, 2)))
    with torch.no_grad():
        tokens = trained.tokens(images)
        assert torch.equal(larger.tokens(images), tokens)
        write_export(safetensors_target(larger), NOISE_ORIGIN, tmp_path / "export")
        for size in ((64, 96), (32, 32), None):  # the grid of training is that of the run, whatever the last size
            exported = load_backbone(tmp_path / "export", image_size=size)
            assert torch.equal(exported.tokens(images), tokens)
            assert exported.spec.encoder.position_grid == (None if size == (32, 32) else (2, 2))


def test_yaml_tags_in_a_run_config_execute_no_code(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    saved(tmp_path, config=f"!!python/object/apply:os.mkdir ['{trace}']\n")
    load_backbone(tmp_path)
    assert not trace.exists()


def test_a_pickle_in_place_of_a_checkpoint_is_rejected(tmp_path: Path) -> None:
    saved(tmp_path)
    place = tmp_path / "checkpoints" / "step-00000010"
    torch.save({"a": torch.ones(1)}, place / "tensors.safetensors")
    with pytest.raises(UserError, match="is a pickle, which could run code, so it is not read"):
        load_backbone(place)
