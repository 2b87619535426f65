"""Runs of two-branch methods that cannot work are refused by one sentence, before anything is written."""

from pathlib import Path

import pytest
import torch

from c2fmae.config.distilling import DinoConfig
from c2fmae.config.pretrain import PretrainConfig
from c2fmae.core.errors import UserError
from c2fmae.core.specs import EncoderConfig
from c2fmae.core.training import TrainingConfig
from c2fmae.data import Scenes, open_scenes
from c2fmae.data.combine import select_granularities
from c2fmae.methods import METHODS, build_method
from c2fmae.pretrain import pretrain
from tests.methods.tiny_branches import ENCODER, TINY

TRAINING = TrainingConfig(steps=2, batch_size=8, lr=1e-3, warmup_steps=0)
GENERATED = "data.train={name: generated, options: {size: 32, length: 16}}"
VIEWS: dict[str, object] = {"second": {}, "local": {}}


def start(out: Path, name: str, *overrides: str, scenes: Scenes | None = None) -> None:
    method = METHODS.get(name)().override([*ENCODER, *TINY[name]])
    config = PretrainConfig(method=method, training=TRAINING).override([GENERATED, "data.workers=0", *overrides])
    pretrain(config, out, scenes=scenes)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("name", "override", "text"),
    [
        (
            "simclr",
            "training.batch_size=1",
            "training.batch_size: simclr compares images (expected at least 2, got 1). Set it higher",
        ),
        (
            "moco-v1",
            "method.queue_length=20",
            "method.queue_length: expected a multiple of the batch of 8, got 20. Set it to 16",
        ),
        (
            "moco-v1",
            "method.queue_length=4",
            "method.queue_length: expected a multiple of the batch of 8, got 4. Set it to 8",
        ),
        (
            "dino",
            "training.sharded=true",
            "training.sharded: a method with a teacher cannot be sharded (expected false, got true). Set it to false",
        ),
        (
            "ibot",
            "training.ema=0.99",
            "training.ema: a method with a teacher has averaged weights, those of its teacher (expected null, got "
            "0.99). Set it to null",
        ),
        (
            "moco-v3",
            "training.compile=model",
            "training.compile: expected blocks or off with two branches, got model. Set it to blocks",
        ),
    ],
)
def test_a_run_that_cannot_work_is_refused(name: str, override: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        start(tmp_path / "run", name, override)
    assert str(caught.value) == text
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("name", TINY)
def test_a_class_token_is_needed_where_it_is_read(name: str) -> None:
    config = METHODS.get(name)().override(["encoder.name=vit_medium_patch16_gap_240", "encoder.depth=1"])
    with torch.device("meta"):
        if name in ("cmae", "lut", "conmim"):
            assert build_method(config).compute_cost().flops > 0
            return
        with pytest.raises(UserError) as caught:
            build_method(config)
    assert str(caught.value) == (
        f"method.encoder.name: {name} reads the class token (expected a ViT that has one, got "
        "vit_medium_patch16_gap_240). Use one such as vit_base_patch16_224"
    )


@pytest.mark.parametrize("name", TINY)
def test_views_that_are_compared_image_by_image_are_like_main(name: str) -> None:
    config = METHODS.get(name)()
    view = "target" if "target" in config.views else "second"
    for change, got in (("count=2", "count 2 and size 224×224"), ("size=[96, 224]", "count 1 and size 96×224")):
        if config.views[view].crop == "shifted" and change.startswith("size"):
            continue  # which no view allows
        with pytest.raises(UserError) as caught:
            config.override([f"views.{view}.{change}"])
        assert str(caught.value) == (
            f"--set: views.{view}: {name} reads one image like main (expected count 1 and size 224×224, got {got}). "
            "Remove count and size"
        )


@pytest.mark.unchecked
def test_views_need_images(tmp_path: Path) -> None:
    maps = select_granularities(open_scenes("generated", size=32, length=16), ("semantic",))
    with pytest.raises(UserError) as caught:
        start(tmp_path / "run", "simclr", scenes=maps)
    assert str(caught.value) == "rgb: the scenes have no such map (got semantic). Add it to the data"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"momentum": 1.5}, "DinoConfig: momentum: expected a momentum from 0 to 1, got 1.5. Change it"),
        (
            {"momentum": {"start": -0.1, "end": 1}},
            "DinoConfig: momentum: expected a momentum from 0 to 1, got -0.1. Change it",
        ),
        (
            {"teacher_temperature": {"start": 0.04, "end": 0}},
            "DinoConfig: teacher_temperature: expected a temperature above 0, got 0. Set it higher",
        ),
    ],
)
def test_numbers_that_change_stay_in_their_range(values: dict[str, object], text: str) -> None:
    with pytest.raises(UserError) as caught:
        DinoConfig.from_dict({"views": VIEWS, **values})
    assert str(caught.value) == text


def test_the_encoder_ends_with_a_norm_unless_a_config_removes_it() -> None:
    def has_norm(**values: object) -> bool:
        return DinoConfig.from_dict({"views": VIEWS, **values}).encoder.has_norm

    assert has_norm()
    assert has_norm(encoder={"name": "vit_tiny_patch16_224"})
    assert has_norm(encoder=EncoderConfig(depth=4))
    assert not has_norm(encoder={"name": "vit_tiny_patch16_224", "has_norm": False})
    assert not has_norm(encoder=EncoderConfig(has_norm=False))
