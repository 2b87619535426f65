"""Runs and checkpoints as backbones: the trained encoder is loaded, and no code in their files is executed."""

from pathlib import Path

import pytest
import torch

from c2fmae.core.checkpoint import Checkpoint, save_checkpoint
from c2fmae.core.errors import UserError
from c2fmae.methods import MaskedAutoencoding
from c2fmae.models.backbones import load_backbone
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


def test_stored_positions_are_resized_to_another_image_size(tmp_path: Path) -> None:
    saved(tmp_path, "mae", "encoder.keep_positions=true")
    assert load_backbone(tmp_path, image_size=(64, 96)).load_report.resized == {
        "encoder.pos_embed": "2×2 → 4×6, bicubic with antialiasing, in float32"
    }


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
