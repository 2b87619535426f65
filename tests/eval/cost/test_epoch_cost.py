from collections.abc import Callable
from itertools import accumulate, count
from statistics import median

import pytest
import torch

from c2fmae.config.masked_method import MaskedConfig
from c2fmae.core.granularity import GRANULARITIES
from c2fmae.eval.cost import epoch_cost
from c2fmae.eval.cost.epoch_cost import EpochCost, _draw_scenes, make_matching_mae_config, measure_epoch_costs
from c2fmae.eval.cost.tables import format_epoch_costs
from c2fmae.methods import METHODS, build_method
from c2fmae.methods.masked.cost import compute_pretraining_cost
from tests.methods.tiny_branches import ENCODER, TINY
from tests.methods.tiny_methods import build_tiny_method, make_tiny_config


def make_slowing_clock() -> Callable[[], float]:
    """Return a clock that shows 0, 1, 3, 6, …: every interval is one second longer than the previous one."""
    return accumulate(count()).__next__


def test_matching_mae_has_the_encoder_and_images_of_the_method() -> None:
    method = make_tiny_config("c2fmae", "encoder.drop_path=0.1", "mean=[0.1, 0.2, 0.3]", size=(32, 48))
    mae = make_matching_mae_config(method)
    assert mae.encoder == method.encoder.model_copy(update={"has_norm": True})
    assert (mae.image_size, mae.mean, mae.std) == ((32, 48), (0.1, 0.2, 0.3), None)
    assert mae.decoder == METHODS.get("mae")().decoder
    assert make_matching_mae_config(METHODS.get("mae")()) == METHODS.get("mae")().override(["channels.rgb=3"])


def test_matching_mae_takes_images_of_as_many_channels() -> None:
    mae = make_matching_mae_config(make_tiny_config("c2fmae", "channels.rgb=5"))
    assert build_method(mae).model.get_submodule("embeddings.rgb.proj").weight.shape[1] == 5  # type: ignore[index]


def make_epoch_cost(method: MaskedConfig, *seconds: float) -> EpochCost:
    mae = make_matching_mae_config(method)
    return EpochCost(
        method, mae, compute_pretraining_cost(method), compute_pretraining_cost(mae), seconds, (1.0, 2.0, 4.0), "a CPU"
    )


def test_ratios_are_those_of_operations_of_paired_steps_and_of_the_fastest() -> None:
    cost = make_epoch_cost(method := make_tiny_config("c2fmae", "encoder.depth=2"), 1.5, 2.6, 8.0)
    assert cost.flops_ratio == cost.cost.flops / cost.mae_cost.flops  # a teacher would add to it
    assert cost.time_ratio == median([1.5, 1.3, 2.0]) == 1.5
    assert cost.fastest_step_ratio == 1.5
    assert make_epoch_cost(make_matching_mae_config(method), 1.0, 2.0, 4.0).flops_ratio == 1


@pytest.fixture
def small_mae(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the matching MAE's decoder small, since steps of the default one take long."""
    small = ["decoder.options.dim=32", "decoder.options.num_heads=4", "decoder.options.depth=1"]
    monkeypatch.setattr(
        epoch_cost, "make_matching_mae_config", lambda config: make_matching_mae_config(config).override(small)
    )


@pytest.mark.usefixtures("small_mae")
def test_steps_of_a_method_and_its_mae_are_timed_in_turn_by_the_clock() -> None:
    state = torch.get_rng_state()
    method = make_tiny_config("c2fmae", "encoder.depth=2")
    clock = make_slowing_clock()
    cost = measure_epoch_costs({"tiny": method}, batch_size=2, rounds=2, precision="fp32", clock=clock)["tiny"]
    # The clock is read once for each of four warm-up steps, then before and after each step.
    assert list(zip(cost.step_seconds, cost.mae_step_seconds, strict=True)) == [(5, 7), (9, 11)]
    assert cost.cost == compute_pretraining_cost(method)
    assert cost.mae_cost == compute_pretraining_cost(cost.mae)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.usefixtures("small_mae")
def test_epochs_of_other_methods_are_measured() -> None:
    method = make_tiny_config("multimae", "encoder.depth=2")
    cost = measure_epoch_costs({"tiny": method}, batch_size=2, rounds=1)["tiny"]
    assert min(*cost.step_seconds, *cost.mae_step_seconds) > 0


@pytest.mark.usefixtures("small_mae")
def test_epochs_of_methods_with_a_teacher_and_views_are_measured() -> None:
    method = METHODS.get("dino")().override([*ENCODER, *TINY["dino"]])
    cost = measure_epoch_costs({"tiny": method}, batch_size=2, rounds=1, precision="fp32")["tiny"]
    assert min(cost.step_seconds) > 0
    assert cost.flops_ratio == (3 * cost.cost.flops + cost.cost.teacher_flops) / (3 * cost.mae_cost.flops)
    assert "tiny" in format_epoch_costs({"tiny": cost})


def test_noise_scenes_have_the_maps_of_masking_and_inputs() -> None:
    method = build_tiny_method("c2fmae", "masking.name=semantic", size=(32, 96), granularities=["rgb"])
    scenes = _draw_scenes(method, 2)
    assert {name: tuple(map_.shape) for name, map_ in scenes.maps.items()} == {
        "rgb": (2, 3, 32, 96),
        "semantic": (2, 8, 24),
        "instance": (2, 8, 24),
    }
    assert all(len(ids.unique()) <= 2 for ids in scenes.maps["semantic"])  # regions of 64 pixels
    assert method.compute_step_loss(scenes, progress=0.5, generator=torch.Generator()).total.isfinite()
    assert "depth" in GRANULARITIES
    deep = build_tiny_method("multimae", size=(32, 32), granularities=["depth", "rgb"])
    assert tuple(_draw_scenes(deep, 2).maps["depth"].shape) == (2, 32, 32)


def test_table_shows_the_papers_ratio_and_the_conditions_of_both() -> None:
    table = format_epoch_costs({"my run": make_epoch_cost(METHODS.get("c2fmae")(), 1.5, 2.6, 8.0)}).splitlines()
    assert table == [
        "        GFLOP/step  MAE GFLOP/step  FLOP ratio  ms/step  MAE ms/step  time ratio  fastest-step ratio  paper",
        "my run        64.1            58.2        1.10     2600         2000        1.50                1.50    1.3",
        "my run: compared with MAE of vit_base_patch16_224, images of 224×224, and a decoder of 8 blocks of width 512",
        "GFLOP/step: for one image with all its views, the teacher and the backward pass, which counts as two forward "
        "passes, a multiply-add as two; time ratio: median over rounds in which the method and MAE are timed in turn",
        "timed on a CPU, eager (without torch.compile) and without data loading; the paper's ratios are of training "
        "times of a ViT-B on A100 GPUs",
    ]


def test_papers_ratio_is_shown_only_for_the_papers_encoder_and_image_size() -> None:
    heads, row, *_ = format_epoch_costs({"tiny": make_epoch_cost(make_tiny_config(), 1.0, 2.0, 4.0)}).splitlines()
    assert heads.endswith("  paper")
    assert row.endswith("1.00                1.00")
