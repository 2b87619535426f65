import pytest
import torch
from torch import nn

from c2fmae.core.ema import averaged_tensors, init_ema, update_ema

pytestmark = pytest.mark.numeric


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)).double()


def move(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


def update(ema: dict[str, torch.Tensor], model: nn.Module, decay: float, *, condition: bool = True) -> None:
    update_ema(ema, averaged_tensors(model), decay, torch.tensor(condition))


def test_the_average_starts_as_a_copy_of_the_weights() -> None:
    each = model()
    average = init_ema(each)
    assert list(average) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    before = {name: tensor.clone() for name, tensor in average.items()}
    move(each)
    assert all(torch.equal(average[name], before[name]) for name in before)
    assert not any(tensor.requires_grad for tensor in average.values())


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.5, 0.9, 0.9999])
def test_the_average_follows_its_definition(decay: float) -> None:
    each = model()
    average = init_ema(each)
    history = [init_ema(each)]
    for _ in range(6):
        move(each)
        update(average, each, decay)
        history.append(init_ema(each))
    for name, found in average.items():
        # The first weights and each later ones, by how much of them is left: no recursion.
        expected = decay**6 * history[0][name]
        for age, weights in enumerate(reversed(history[1:])):
            expected = expected + (1 - decay) * decay**age * weights[name]
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


def test_a_teacher_equals_lightlys() -> None:
    utils = pytest.importorskip("lightly.models.utils", reason="lightly is not installed")
    each, theirs = model(), model()
    average = init_ema(each)
    theirs.load_state_dict(average)
    for decay in (0.99, 0.992, 0.995, 0.998, 1.0):
        move(each)
        update(average, each, decay)
        utils.update_momentum(each, theirs, decay)
    for name, expected in theirs.named_parameters():
        torch.testing.assert_close(average[name], expected.detach(), rtol=0, atol=1e-12)


def test_a_decay_of_zero_gives_the_weights() -> None:
    each = model()
    average = init_ema(each)
    move(each)
    update(average, each, 0.0)
    assert all(torch.equal(average[name], parameter) for name, parameter in each.named_parameters())


def test_an_update_does_not_change_the_weights() -> None:
    each = model()
    average = init_ema(each)
    move(each)
    before = init_ema(each)
    update(average, each, 0.5)
    assert all(torch.equal(before[name], parameter) for name, parameter in each.named_parameters())


def test_a_decay_near_one_still_updates_in_single_precision() -> None:
    each = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(each.weight)
    average = init_ema(each)
    nn.init.ones_(each.weight)
    for _ in range(10_000):
        update(average, each, 0.9999)
    assert average["weight"].item() == pytest.approx(1 - 0.9999**10_000, rel=1e-3)


@pytest.mark.parametrize("decay", [0.0, 0.75])
def test_running_statistics_are_averaged_and_counts_of_batches_copied(decay: float) -> None:
    each = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False)).double()
    average = init_ema(each)
    assert average.keys() == each.state_dict().keys()
    history = [init_ema(each)]
    for seed in range(3):
        each(torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
        update(average, each, decay)
        history.append(init_ema(each))
    assert average["1.num_batches_tracked"] == 3
    for name in ("1.running_mean", "1.running_var"):
        expected = decay**3 * history[0][name]
        for age, statistics in enumerate(reversed(history[1:])):
            expected = expected + (1 - decay) * decay**age * statistics[name]
        torch.testing.assert_close(average[name], expected, rtol=1e-13, atol=1e-13)


def test_other_buffers_are_not_averaged() -> None:
    each = nn.Linear(2, 2)
    each.register_buffer("positions", torch.zeros(3))
    assert list(init_ema(each)) == ["weight", "bias"]


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.5, 0.9999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_condition_decides_about_the_update_and_changes_no_bit_of_it(dtype: torch.dtype, decay: float) -> None:
    each = nn.Sequential(nn.Linear(33, 17), nn.BatchNorm1d(17)).to(dtype)
    average = init_ema(each)
    move(each)
    each(torch.ones(2, 33, dtype=dtype))
    before = {name: tensor.clone() for name, tensor in average.items()}
    update(average, each, decay, condition=False)
    assert all(torch.equal(average[name], before[name]) for name in before)
    update(average, each, decay)
    current = averaged_tensors(each)
    names = [name for name in before if name != "1.num_batches_tracked"]
    torch._foreach_lerp_([before[name] for name in names], [current[name].detach() for name in names], 1 - decay)
    assert all(torch.equal(average[name], before[name]) for name in names)
    assert average["1.num_batches_tracked"] == 1
