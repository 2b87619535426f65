from itertools import count
from statistics import median

import pytest
import torch

from c2fmae.config.method import MethodConfig
from c2fmae.core.granularity import GRANULARITIES
from c2fmae.eval.cost import epoch_cost
from c2fmae.eval.cost.epoch_cost import EpochCost, _random_scenes, matching_mae_config, measure_epoch_costs
from c2fmae.eval.cost.tables import format_epoch_costs
from c2fmae.eval.cost.timing import median_interval, time_in_turn
from c2fmae.methods import METHODS, build_method
from c2fmae.methods.masked.cost import compute_pretraining_cost
from tests.methods.tiny_methods import build_tiny_method, make_tiny_config


class Ticks:
    """A clock of which every span between two looks is one second longer than the last."""

    def __init__(self) -> None:
        self.now, self.spans = 0.0, count()

    def __call__(self) -> float:
        self.now += next(self.spans)
        return self.now


def test_the_mae_beside_a_method_has_its_encoder_and_photos() -> None:
    method = make_tiny_config("c2fmae", "encoder.drop_path=0.1", "mean=[0.1, 0.2, 0.3]", size=(32, 48))
    mae = matching_mae_config(method)
    assert mae.encoder == method.encoder.model_copy(update={"has_norm": True})
    assert (mae.image_size, mae.mean, mae.std) == ((32, 48), (0.1, 0.2, 0.3), None)
    assert mae.decoder == METHODS.get("mae")().decoder
    assert matching_mae_config(METHODS.get("mae")()) == METHODS.get("mae")().override(["channels.rgb=3"])


def test_a_mae_sees_photos_of_as_many_channels() -> None:
    mae = matching_mae_config(make_tiny_config("c2fmae", "channels.rgb=5"))
    assert build_method(mae).model.get_submodule("embeddings.rgb.proj").weight.shape[1] == 5  # type: ignore[index]


def epoch(method: MethodConfig, *seconds: float) -> EpochCost:
    mae = matching_mae_config(method)
    return EpochCost(
        method, mae, compute_pretraining_cost(method), compute_pretraining_cost(mae), seconds, (1.0, 2.0, 4.0), "a CPU"
    )


def test_ratios_are_those_of_operations_of_paired_steps_and_of_the_quickest() -> None:
    each = epoch(method := make_tiny_config("c2fmae", "encoder.depth=2"), 1.5, 2.6, 8.0)
    assert each.flops_ratio == each.cost.flops / each.mae_cost.flops
    assert each.time_ratio == median([1.5, 1.3, 2.0]) == 1.5
    assert each.fastest_step_ratio == 1.5
    assert epoch(matching_mae_config(method), 1.0, 2.0, 4.0).flops_ratio == 1


@pytest.fixture
def small_mae(monkeypatch: pytest.MonkeyPatch) -> None:
    """An MAE beside a method whose decoder is small too: steps of its own take long."""
    small = ["decoder.options.dim=32", "decoder.options.num_heads=4", "decoder.options.depth=1"]
    monkeypatch.setattr(epoch_cost, "matching_mae_config", lambda config: matching_mae_config(config).override(small))


@pytest.mark.usefixtures("small_mae")
def test_steps_of_a_method_and_of_its_mae_take_turns_and_are_timed_by_the_clock() -> None:
    state = torch.get_rng_state()
    method = make_tiny_config("c2fmae", "encoder.depth=2")
    each = measure_epoch_costs({"it": method}, batch_size=2, rounds=2, precision="fp32", clock=Ticks())["it"]
    # Four steps of warm-up, before each of which it looks once; then it looks before a step and after it.
    assert [step for pair in zip(each.step_seconds, each.mae_step_seconds, strict=True) for step in pair] == [
        5,
        7,
        9,
        11,
    ]
    assert each.cost == compute_pretraining_cost(each.method)
    assert each.mae_cost == compute_pretraining_cost(each.mae)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.usefixtures("small_mae")
def test_other_methods_have_a_price_too() -> None:
    method = make_tiny_config("multimae", "encoder.depth=2")
    each = measure_epoch_costs({"it": method}, batch_size=2, rounds=1)["it"]
    assert min(*each.step_seconds, *each.mae_step_seconds) > 0


def test_scenes_of_noise_suit_what_hides_and_what_is_seen() -> None:
    method = build_tiny_method("c2fmae", "masking.name=semantic", size=(32, 96), granularities=["rgb"])
    scenes = _random_scenes(method, 2)
    assert {name: tuple(each.shape) for name, each in scenes.maps.items()} == {
        "rgb": (2, 3, 32, 96),
        "semantic": (2, 8, 24),
        "instance": (2, 8, 24),
    }
    assert (scenes.maps["semantic"][:, :, :16] == scenes.maps["semantic"][:, :1, :1]).all()
    assert method.compute_step_loss(scenes, progress=0.5, generator=torch.Generator()).total.isfinite()
    assert "depth" in GRANULARITIES
    deep = build_tiny_method("multimae", size=(32, 32), granularities=["depth", "rgb"])
    assert tuple(_random_scenes(deep, 2).maps["depth"].shape) == (2, 32, 32)


def test_a_table_puts_the_papers_figure_beside_ours_and_says_what_differs() -> None:
    table = format_epoch_costs({"my run": epoch(METHODS.get("c2fmae")(), 1.5, 2.6, 8.0)}).splitlines()
    assert table == [
        "        GFLOP  MAE's  × by FLOP  ms a step  MAE's  × by time  × by minima  paper",
        "my run  21.37  19.39       1.10       2600   2000       1.50         1.50    1.3",
        "my run: its MAE has vit_base_patch16_224 too, photos of 224×224, and a decoder of 8 blocks of width 512",
        "by FLOP: of one image's forward pass, a multiplication and the addition behind it being two; "
        "by time: median over rounds of steps in turn",
        "timed on a CPU, without reading data; the paper's are a ViT-B's training times on A100 GPUs",
    ]


def test_the_papers_figure_stands_beside_its_own_encoder_and_photos_alone() -> None:
    heads, row, *_ = format_epoch_costs({"tiny": epoch(make_tiny_config(), 1.0, 2.0, 4.0)}).splitlines()
    assert heads.endswith("  paper")
    assert row.endswith("1.00         1.00")


def test_variants_take_turns_and_warm_up() -> None:
    turns = list[str]()
    variants = {name: lambda name=name: turns.append(name) for name in "ab"}
    assert time_in_turn(variants, rounds=2, clock=Ticks()) == {"a": [5, 9], "b": [7, 11]}
    assert "".join(turns) == "abababab"


def test_an_interval_of_a_median_is_the_narrowest_that_order_alone_gives() -> None:
    assert median_interval(range(5)) is None
    assert median_interval(range(8)) == (0, 7)
    assert median_interval(range(9)) == (1, 7)
    assert median_interval(range(20)) == (5, 14)


def test_an_interval_of_a_median_holds_it_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(2000, 12, generator=generator).tolist()
    held = [interval[0] <= 0.5 <= interval[1] for row in draws if (interval := median_interval(row))]
    assert 0.95 <= sum(held) / len(draws) < 0.97
