"""Image sizes that change in the course of a run: the same batches for any start, workers, ranks and micro-batches."""

import shutil
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from c2fmae.core.checkpoint import load_checkpoint
from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.metric_rows import read_rows
from c2fmae.methods import build_method
from c2fmae.methods.masked.batch_masker import MaskedScenes
from c2fmae.pretrain import build_pretraining, pretrain
from c2fmae.recipes.config import RecipeConfig, load_recipe
from tests.data.dataset_files import assert_user_error
from tests.methods.tiny_methods import build_tiny_method, draw_noise_scenes, make_tiny_config

SIZES = [(32, 32), (32, 32), (48, 32), (48, 32), (64, 64), (64, 64)]
"""Image size of each step."""

SETTINGS = (
    "method.early_image_sizes=[[0.3, [32, 32]], [0.6, [48, 32]]]",
    "method.encoder.depth=1",
    "method.decoder.options.depth=1",
    "training.steps=6",
    "training.warmup_steps=0",
    "training.batch_size=4",
    "training.precision=fp32",
    "data.train.options={size: 64, length: 12, difficulty: easy}",
    "data.held_out_samples=2",
    "watching.figures=0",
)


def make_config(*overrides: str) -> RecipeConfig:
    return load_recipe("c2fmae-debug", [*SETTINGS, *overrides])


def load(*overrides: str, first_step: int = 0, world: World | None = None) -> list[Sequence[MaskedScenes]]:
    """Return the batches of a rank from a step on."""
    experiment = build_pretraining(make_config(*overrides), world or World())
    with experiment.open_batches(first_step) as batches:
        return list(islice(batches, len(SIZES) - first_step))


def join(micro_batches: Sequence[MaskedScenes]) -> dict[str, Any]:
    """Return the keys, images and masks of micro-batches."""
    return {
        "keys": [key for part in micro_batches for key in part.scenes.keys],
        "rgb": torch.cat([part.scenes.maps["rgb"] for part in micro_batches]).tolist(),
        "instance": torch.cat([part.scenes.maps["instance"] for part in micro_batches]).tolist(),
        "is_masked": torch.cat([part.masks.is_masked for part in micro_batches]).tolist(),
        "visible_idx": torch.cat([part.masks.visible_idx for part in micro_batches]).tolist(),
    }


def test_a_size_ends_exactly_at_its_fraction_of_the_run() -> None:
    config = make_tiny_config("mae", "early_image_sizes=[[0.4, [16, 16]], [0.7, [32, 16]]]", size=(48, 32))
    sizes = [config.choose_image_size(step / 10) for step in range(10)]
    assert sizes == [(16, 16)] * 4 + [(32, 16)] * 3 + [(48, 32)] * 3
    assert make_tiny_config("mae", size=(48, 32)).choose_image_size(0.0) == (48, 32)


def test_fractions_of_the_run_increase() -> None:
    for ends in ([0.7, 0.4], [0.4, 0.4]):
        sizes = ", ".join(f"[{end}, [16, 16]]" for end in ends)
        with pytest.raises(UserError, match="early_image_sizes: expected increasing fractions of the run, got "):
            make_tiny_config("mae", f"early_image_sizes=[{sizes}]")


def test_a_size_that_the_patch_size_does_not_divide_is_an_error() -> None:
    config = make_tiny_config("mae", "early_image_sizes=[[0.4, [16, 24]]]")
    message = "early_image_sizes: 24 is not a multiple of the patch size 16 (of test_vit). Nearest: 16 or 32"
    assert_user_error(lambda: build_method(config), message)


@pytest.mark.parametrize(("num_visible", "expected"), [("null", (2, 8)), ("12", (3, 12)), ("13", (3, 13))])
def test_the_fraction_of_visible_patches_is_the_same_at_each_size(num_visible: str, expected: tuple[int, int]) -> None:
    method = build_tiny_method("c2fmae", f"num_visible={num_visible}", size=(64, 64))
    for size, number in zip(((32, 32), (64, 64)), expected, strict=True):
        scenes, generator = draw_noise_scenes(size=size), torch.Generator().manual_seed(0)
        masks = method.sample_masks(scenes, progress=0.0, generator=generator)
        assert masks.visible_idx.shape == (2, number)


def test_batches_have_the_size_of_their_step_for_any_start_workers_ranks_and_micro_batches() -> None:
    batches = load("data.workers=0")
    assert [tuple(batch[0].scenes.maps["rgb"].shape[-2:]) for batch in batches] == SIZES
    assert [tuple(batch[0].scenes.maps["semantic"].shape[-2:]) for batch in batches] == [
        (height // 4, width // 4) for height, width in SIZES
    ]
    expected = [join(batch) for batch in batches]
    for first_step in (1, 2):  # within a size, and at a change
        assert [join(batch) for batch in load("data.workers=2", first_step=first_step)] == expected[first_step:]
    assert [join(batch) for batch in load("data.workers=0", "training.micro_batch=2")] == expected
    first, second = (load("data.workers=0", world=World(rank, 2)) for rank in (0, 1))
    assert [join([*one, *other]) for one, other in zip(first, second, strict=True)] == expected


def test_positions_of_timm_weights_are_interpolated_to_each_size() -> None:
    method = build_tiny_method("c2fmae", "encoder.keep_positions=true", size=(64, 64))
    for size in ((32, 32), (64, 64)):
        scenes, generator = draw_noise_scenes(size=size), torch.Generator().manual_seed(0)
        assert method.compute_step_loss(scenes, progress=0.0, generator=generator).total.isfinite()


def test_a_run_that_is_resumed_at_any_step_has_the_same_bits(tmp_path: Path) -> None:
    config = make_config("data.workers=0", "saving.steps=1", "saving.keep_last=9", "watching.held_out_every=3")
    pretrain(config, tmp_path / "run")
    rows = [row for row in read_rows(tmp_path / "run/metrics.jsonl") if "loss" in row]
    assert [row["image_height"] for row in rows] == [height for height, _ in SIZES]
    expected = load_checkpoint(tmp_path / "run/checkpoints/step-00000006").tensors
    for step in range(1, len(SIZES)):
        resumed = tmp_path / f"resumed-{step}"
        shutil.copytree(tmp_path / "run", resumed)
        for later in range(step + 1, len(SIZES) + 1):
            shutil.rmtree(resumed / f"checkpoints/step-{later:08d}")
        pretrain(config, resumed, resume=True)
        tensors = load_checkpoint(resumed / "checkpoints/step-00000006").tensors
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)
        assert (resumed / "metrics.jsonl").read_bytes() == (tmp_path / "run/metrics.jsonl").read_bytes()
    assert "Height of training images" in (tmp_path / "run/report.html").read_text(encoding="utf-8")


def test_each_size_may_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[dict[str, int]] = []
    monkeypatch.setattr("c2fmae.pretrain.prepare_model", lambda *_, **given: options.append(given))
    for sizes in ("[]", "[[0.3, [32, 32]], [0.6, [48, 48]]]", "[[0.3, [64, 64]]]"):
        build_pretraining(make_config(f"method.early_image_sizes={sizes}"), World())
    assert options == [{"num_shapes": number} for number in (1, 3, 1)]
