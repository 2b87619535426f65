from itertools import count
from statistics import median

import pytest
import torch

from c2fmae.core.scene import GRANULARITIES
from c2fmae.eval.cost import EpochCost, epoch_cost, epoch_table, relative_to_mae
from c2fmae.eval.cost.epoch_cost import _noise_scenes, mae_like
from c2fmae.eval.cost.timing import alternate, median_interval
from c2fmae.methods import METHODS, MethodConfig, build_method
from c2fmae.methods.cost import cost_of
from tests.methods.tiny_methods import tiny, tiny_config


class Ticks:
    """A clock of which every span between two looks is one second longer than the last."""

    def __init__(self) -> None:
        self.now, self.spans = 0.0, count()

    def __call__(self) -> float:
        self.now += next(self.spans)
        return self.now


def test_the_mae_beside_a_method_has_its_encoder_and_photos() -> None:
    method = tiny_config("c2fmae", "encoder.drop_path=0.1", "mean=[0.1, 0.2, 0.3]", size=(32, 48))
    mae = mae_like(method)
    assert mae.encoder == method.encoder.model_copy(update={"has_norm": True})
    assert (mae.image_size, mae.mean, mae.std) == ((32, 48), (0.1, 0.2, 0.3), None)
    assert mae.decoder == METHODS.get("mae")().decoder
    assert mae_like(METHODS.get("mae")()) == METHODS.get("mae")().override(["channels.rgb=3"])


def test_a_mae_sees_photos_of_as_many_channels() -> None:
    mae = mae_like(tiny_config("c2fmae", "channels.rgb=5"))
    assert build_method(mae).model.get_submodule("embeddings.rgb.proj").weight.shape[1] == 5  # type: ignore[index]


def epoch(method: MethodConfig, *seconds: float) -> EpochCost:
    mae = mae_like(method)
    return EpochCost(method, mae, cost_of(method), cost_of(mae), seconds, (1.0, 2.0, 4.0))


def test_ratios_are_those_of_operations_of_paired_steps_and_of_the_quickest() -> None:
    each = epoch(method := tiny_config("c2fmae", "encoder.depth=2"), 1.5, 2.6, 8.0)
    assert each.by_flops == each.cost.flops / each.mae_cost.flops
    assert each.by_time == median([1.5, 1.3, 2.0]) == 1.5
    assert each.by_minima == 1.5
    assert epoch(mae_like(method), 1.0, 2.0, 4.0).by_flops == 1


@pytest.fixture
def small_mae(monkeypatch: pytest.MonkeyPatch) -> None:
    """An MAE beside a method whose decoder is small too: steps of its own take long."""
    small = ["decoder.dim=32", "decoder.num_heads=4", "decoder.depth=1"]
    monkeypatch.setattr(epoch_cost, "mae_like", lambda config: mae_like(config).override(small))


@pytest.mark.usefixtures("small_mae")
def test_steps_of_a_method_and_of_its_mae_take_turns_and_are_timed_by_the_clock() -> None:
    state = torch.get_rng_state()
    method = tiny_config("c2fmae", "encoder.depth=2")
    each = relative_to_mae({"it": method}, batch_size=2, rounds=2, precision="fp32", clock=Ticks())["it"]
    # Four steps of warm-up, before each of which it looks once; then it looks before a step and after it.
    assert [step for pair in zip(each.seconds, each.mae_seconds, strict=True) for step in pair] == [5, 7, 9, 11]
    assert each.cost == cost_of(each.method)
    assert each.mae_cost == cost_of(each.mae)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.usefixtures("small_mae")
def test_other_methods_have_a_price_too() -> None:
    method = tiny_config("multimae", "encoder.depth=2")
    each = relative_to_mae({"it": method}, batch_size=2, rounds=1)["it"]
    assert min(*each.seconds, *each.mae_seconds) > 0


def test_scenes_of_noise_suit_what_hides_and_what_is_seen() -> None:
    method = tiny("c2fmae", "masking.policy=semantic", size=(32, 96), granularities=["rgb"])
    scenes = _noise_scenes(method, 2)
    assert {name: tuple(each.shape) for name, each in scenes.maps.items()} == {
        "rgb": (2, 3, 32, 96),
        "semantic": (2, 8, 24),
        "instance": (2, 8, 24),
    }
    assert (scenes.maps["semantic"][:, :, :16] == scenes.maps["semantic"][:, :1, :1]).all()
    assert method.loss(scenes, progress=0.5, generator=torch.Generator()).total.isfinite()
    assert "depth" in GRANULARITIES
    deep = tiny("multimae", size=(32, 32), granularities=["depth", "rgb"])
    assert tuple(_noise_scenes(deep, 2).maps["depth"].shape) == (2, 32, 32)


def test_a_table_puts_the_papers_figure_beside_ours_and_says_what_differs() -> None:
    table = epoch_table({"my run": epoch(METHODS.get("c2fmae")(), 1.5, 2.6, 8.0)}, "2 threads of a CPU").splitlines()
    assert table == [
        "        GFLOP  MAE's  × by FLOP  ms a step  MAE's  × by time  × by minima  paper",
        "my run  21.37  19.39       1.10       2600   2000       1.50         1.50    1.3",
        "my run: its MAE has vit_base_patch16_224 too, photos of 224×224, and a decoder of 8 blocks of width 512",
        "by FLOP: of one image's forward pass, a multiplication and the addition behind it being two; "
        "by time: median over rounds of steps in turn",
        "timed on 2 threads of a CPU, without reading data; the paper's are a ViT-B's training times on A100 GPUs",
    ]


def test_the_papers_figure_stands_beside_its_own_encoder_and_photos_alone() -> None:
    heads, row, *_ = epoch_table({"tiny": epoch(tiny_config(), 1.0, 2.0, 4.0)}, "a CPU").splitlines()
    assert heads.endswith("  paper")
    assert row.endswith("1.00         1.00")


def test_variants_take_turns_and_warm_up() -> None:
    turns = list[str]()
    variants = {name: lambda name=name: turns.append(name) for name in "ab"}
    assert alternate(variants, rounds=2, clock=Ticks()) == {"a": [5, 9], "b": [7, 11]}
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
