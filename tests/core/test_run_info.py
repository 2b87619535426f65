import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from c2fmae.core.checkpoint import Checkpoint, save_checkpoint
from c2fmae.core.checkpoint_migrations import add_kind_and_backbone
from c2fmae.core.errors import UserError
from c2fmae.core.run_info import RunInfo, is_run_or_checkpoint, read_run_info
from c2fmae.core.specs import BackboneSpec, EncoderConfig

BACKBONE = BackboneSpec(
    encoder=EncoderConfig(name="test_vit", patch_size=4),
    image_size=(16, 32),
    channels={"semantic": 2, "rgb": 3},
    class_names=("sky", "sea"),
)
CLASSIFIER = {"labels": [{"name": "cat"}, None], "crop": 0.9}
PRETRAINING = {
    "kind": "pretraining",
    "backbone": BACKBONE.model_dump(mode="json"),
    "config": {"method": {"name": "mae"}},
    "samples": 640,
}
FINETUNING = {**PRETRAINING, "kind": "finetuning", "classifier": CLASSIFIER, "config": {"mixing": {}}}
FIX = "Use a run, or one of its checkpoints"


def write_run(path: Path, metadata: dict[str, Any] | None = None, *steps: int, config: Any = None) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config or {"method": {"name": "mae"}}))
    for step in steps:
        save_checkpoint(path / "checkpoints", Checkpoint(step, {"model/w": torch.ones(1)}, metadata or {}))
    return path


def test_a_run_is_described_by_its_newest_checkpoint(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", PRETRAINING, 5, 10)
    info = read_run_info(run)
    assert (info.path, info.kind, info.step, info.num_samples) == (run, "pretraining", 10, 640)
    assert (info.backbone, info.classifier, info.config) == (BACKBONE, None, {"method": {"name": "mae"}})
    assert info.run_dir
    assert info.run_dir.path == run
    assert read_run_info(run, step=5).step == 5


@pytest.mark.parametrize(("part", "step"), [("checkpoints", 10), ("checkpoints/step-00000005", 5)])
def test_parts_of_a_run_are_described(part: str, step: int, tmp_path: Path) -> None:
    info = read_run_info(write_run(tmp_path / "run", PRETRAINING, 5, 10) / part)
    assert (info.step, info.kind) == (step, "pretraining")
    assert info.run_dir
    assert info.run_dir.path == tmp_path / "run"


def test_a_checkpoint_elsewhere_has_no_run_directory(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, Checkpoint(3, {}, PRETRAINING)).rename(tmp_path / "best")
    assert (read_run_info(path).step, read_run_info(path).run_dir) == (3, None)


def test_a_fine_tuned_run_has_a_classifier_on_its_backbone(tmp_path: Path) -> None:
    info = read_run_info(write_run(tmp_path, FINETUNING, 5))
    assert info.kind == "finetuning"
    assert info.classifier
    assert info.classifier.backbone == info.backbone == BACKBONE
    assert [label and label.name for label in info.classifier.labels] == ["cat", None]
    assert info.classifier.crop == 0.9


def test_no_tensors_are_read(tmp_path: Path) -> None:
    run = write_run(tmp_path, PRETRAINING, 5)
    (run / "checkpoints" / "step-00000005" / "tensors.safetensors").unlink()
    assert read_run_info(run).step == 5


def test_damaged_metadata_is_skipped(tmp_path: Path) -> None:
    run = write_run(tmp_path, PRETRAINING, 5, 10)
    damaged = run / "checkpoints" / "step-00000010" / "checkpoint.json"
    damaged.write_text("{")
    assert read_run_info(run).step == 5
    with pytest.raises(UserError, match=f"{damaged}: is not JSON"):
        read_run_info(run, step=10)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"kind": "finetuning", "init": "a"}, "finetuning"),
        ({"kind": "pretraining"}, "pretraining"),
        ({"method": {}, "data": {}}, "pretraining"),
        ({"init": "a", "mixing": {}, "data": {}}, "finetuning"),
    ],
)
def test_a_run_without_a_checkpoint_is_described_by_its_config(
    config: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    info = read_run_info(write_run(tmp_path, config=config))
    assert (info.kind, info.step, info.config, info.classifier, info.num_samples) == (kind, None, config, None, None)
    with pytest.raises(UserError, match=f"{tmp_path}: its metadata has no 'backbone'. {FIX}"):
        assert info.backbone


def test_the_backbone_of_a_run_without_a_checkpoint_is_the_recorded_one(tmp_path: Path) -> None:
    config = {"kind": "pretraining", "backbone": BACKBONE.model_dump(mode="json")}
    assert read_run_info(write_run(tmp_path, config=config)).backbone == BACKBONE


def test_a_path_that_is_no_run_is_rejected(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="is missing. Restore it, or use another checkpoint"):
            read_run_info(path)
        assert not is_run_or_checkpoint(path)


def test_runs_and_checkpoints_are_recognised(tmp_path: Path) -> None:
    run = write_run(tmp_path, PRETRAINING, 5)
    for path in (run, run / "checkpoints", run / "checkpoints" / "step-00000005"):
        assert is_run_or_checkpoint(path)


def test_a_run_of_detection_has_the_spec_of_its_detector(tmp_path: Path) -> None:
    detector = {"classes": [{"name": "cat"}], "pyramid": {"name": "simple", "depths": [2]}}
    metadata = {**PRETRAINING, "kind": "detection", "detector": detector, "config": {"kind": "detection"}}
    spec = read_run_info(write_run(tmp_path / "run", metadata, 5)).detector
    assert spec is not None
    assert (spec.backbone, spec.pyramid.name, spec.classes[0].name) == (BACKBONE, "simple", "cat")
    assert read_run_info(write_run(tmp_path / "new", config={"kind": "detection"})).detector is None
    assert read_run_info(write_run(tmp_path / "other", PRETRAINING, 5)).detector is None


def test_another_kind_and_missing_entries_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        assert RunInfo(tmp_path, 1, {"kind": "tracking"}).kind
    assert str(caught.value) == (
        f"{tmp_path}: is a run of kind 'tracking', which this version does not support. Upgrade c2fmae"
    )
    with pytest.raises(UserError) as caught:
        assert RunInfo(tmp_path, 1, {}).kind
    assert str(caught.value) == f"{tmp_path}: its metadata has no 'kind'. {FIX}"


METHOD = {
    "granularities": ["rgb", "semantic"],
    "channels": {"semantic": 2},
    "encoder": {"dim": 8},
    "image_size": [8, 8],
}


def test_metadata_of_the_first_format_gets_a_kind_and_a_backbone() -> None:
    old = {"config": {"method": METHOD}, "classes": ["sky", "sea"], "normalisation": {"mean": [0], "std": [1]}}
    assert add_kind_and_backbone({**old, "samples": 3}) == {
        "kind": "pretraining",
        "backbone": {
            "encoder": {"dim": 8},
            "image_size": [8, 8],
            "channels": {"rgb": 3, "semantic": 2},
            "mean": [0],
            "std": [1],
            "class_names": ["sky", "sea"],
        },
        "config": {"method": METHOD},
        "samples": 3,
    }


def test_metadata_of_a_classifier_of_the_first_format_gets_a_kind_and_a_backbone() -> None:
    old = {"config": {}, "classifier": {**CLASSIFIER, "backbone": {"image_size": [8, 8]}}, "classes": []}
    before = json.dumps(old)
    assert add_kind_and_backbone(old) == {
        "kind": "finetuning",
        "backbone": {"image_size": [8, 8]},
        "classifier": CLASSIFIER,
        "config": {},
    }
    assert json.dumps(old) == before


@pytest.mark.parametrize("metadata", [{}, {"seed": 3}, {"config": {}}, {"config": {"method": 3}}, {"config": None}])
def test_other_metadata_of_the_first_format_is_unchanged(metadata: dict[str, Any]) -> None:
    assert add_kind_and_backbone(metadata) == metadata
