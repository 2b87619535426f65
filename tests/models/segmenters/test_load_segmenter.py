"""Segmenters are loaded from runs and checkpoints of `eval segment`, and their backbones like any other."""

from pathlib import Path

import pytest
import torch

from c2fmae.core.checkpoint import load_checkpoint, save_checkpoint
from c2fmae.core.errors import UserError
from c2fmae.models.backbones import load_backbone
from c2fmae.models.segmenters import load_segmenter
from tests.exports.noise_sources import write_noise_run
from tests.models.segmenters.noise_segmenters import draw_images, make_noise_segmenter, write_segmentation_run


@pytest.mark.parametrize("relative", ["none", "bias", "decomposed"])
def test_a_checkpoint_is_loaded_with_its_head(relative: str, tmp_path: Path) -> None:
    segmenter = make_noise_segmenter(relative=relative, normed=True)
    loaded = load_segmenter(write_segmentation_run(tmp_path / "run", segmenter))
    assert loaded.spec == segmenter.spec
    assert not loaded.training
    assert torch.equal(loaded.logits(draw_images(32, 40)), segmenter.logits(draw_images(32, 40)))
    assert str(loaded.load_report).endswith("step 7")


def test_averaged_weights_are_loaded_on_request(tmp_path: Path) -> None:
    segmenter = make_noise_segmenter("linear")
    run = write_segmentation_run(tmp_path / "run", segmenter, with_ema=True)
    averaged = load_segmenter(run, use_ema=True)
    bias, mean = "head.classifier.bias", "head.norm.running_mean"
    assert torch.equal(averaged.get_parameter(bias), segmenter.get_parameter(bias) + 1)
    assert torch.equal(averaged.get_buffer(mean), segmenter.get_buffer(mean) + 1)
    with pytest.raises(UserError, match="has no averaged weights"):
        load_segmenter(write_segmentation_run(tmp_path / "plain", segmenter), use_ema=True)


def test_other_sources_are_refused_with_the_command_that_makes_a_segmenter(tmp_path: Path) -> None:
    run, file = write_noise_run(tmp_path / "run"), tmp_path / "weights.pth"
    file.touch()
    for source, problem in (
        (run, "is a pretraining run without a segmenter"),
        (file, "is not a run of this package"),
    ):
        with pytest.raises(UserError) as error:
            load_segmenter(source)
        assert str(error.value) == f"{source}: {problem}. Make a segmenter: c2fmae eval segment {source} --data D"
    with pytest.raises(UserError, match=r"missing: does not exist\. Check the path"):
        load_segmenter(tmp_path / "missing")


def test_the_backbone_of_a_segmenter_is_a_backbone_like_any_other(tmp_path: Path) -> None:
    segmenter = make_noise_segmenter()
    backbone = load_backbone(write_segmentation_run(tmp_path / "run", segmenter))
    for one, other in zip(
        backbone.feature_maps(draw_images(32, 32), (2, 4), normed=False),
        segmenter.backbone.feature_maps(draw_images(32, 32), (2, 4), normed=False),
        strict=True,
    ):
        assert torch.equal(one, other)
    assert "the backbone of a segmenter, step 7" in str(backbone.load_report)
    relative = write_segmentation_run(tmp_path / "relative", make_noise_segmenter(relative="bias"))
    with pytest.raises(UserError, match="relative positions, which only its segmenter has"):
        load_backbone(relative)


@pytest.mark.parametrize("damage", ["missing", "shape", "dtype"])
def test_damaged_checkpoints_are_refused(damage: str, tmp_path: Path) -> None:
    run = write_segmentation_run(tmp_path / "run", make_noise_segmenter("linear"))
    checkpoint = load_checkpoint(next(run.iterdir()))
    name = "model/head.classifier.weight"
    weight = checkpoint.tensors[name]
    changed = {"missing": {}, "shape": {name: weight[:2]}, "dtype": {name: weight.half()}}[damage]
    tensors = {key: tensor for key, tensor in checkpoint.tensors.items() if key != name} | changed
    save_checkpoint(tmp_path / "damaged", type(checkpoint)(checkpoint.step, tensors, checkpoint.metadata))
    with pytest.raises(UserError, match=r"head\.classifier\.weight"):
        load_segmenter(tmp_path / "damaged")
