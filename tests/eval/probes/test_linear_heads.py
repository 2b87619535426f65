import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.schedules import warmup_cosine
from c2fmae.eval.probes.batching import num_batches, shuffled_batches, split_training_validation
from c2fmae.eval.probes.linear_heads import (
    LinearHeadSetting,
    LinearProbe,
    choose_linear_head,
    fit_linear_heads,
    mean_and_std,
    target_accuracy,
)
from tests.eval.probes.blobs import accuracy, make_blobs

pytestmark = pytest.mark.numeric

SWEEP = [
    LinearHeadSetting("last", lr, decay)
    for lr, decay in itertools.product((0.03, 0.1, 0.3, 1.0, 3.0), (0, 1e-4, 1e-3, 1e-2))
]


def fit(
    features: Tensor | dict[str, Tensor],
    targets: Tensor,
    settings: list[LinearHeadSetting],
    *,
    rows: Tensor | None = None,
    epochs: int = 3,
    batch_size: int = 50,
    num_labels: int = 4,
    seed: int = 0,
) -> list[LinearProbe]:
    columns = {"last": features} if isinstance(features, Tensor) else features
    rows = torch.arange(len(targets)) if rows is None else rows
    return fit_linear_heads(
        columns,
        targets,
        settings,
        rows=rows,
        num_labels=num_labels,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
    )


def by_torch(features: Tensor, targets: Tensor, setting: LinearHeadSetting, epochs: int = 3) -> tuple[Tensor, Tensor]:
    """The same by torch's optimiser and its gradients."""
    rows = (features - features.mean(0)) / features.std(0, correction=0)
    weight = torch.zeros(4, features.shape[1], requires_grad=True)
    bias = torch.zeros(4, requires_grad=True)
    optimiser = torch.optim.SGD(
        [{"params": [weight], "weight_decay": setting.weight_decay}, {"params": [bias], "weight_decay": 0.0}],
        lr=setting.lr,
        momentum=0.9,
    )
    total = epochs * num_batches(len(targets), 50)
    batches = shuffled_batches(torch.arange(len(targets)), epochs=epochs, batch_size=50, seed=0)
    for step, batch in enumerate(batches):
        for group in optimiser.param_groups:
            group["lr"] = setting.lr * warmup_cosine(step, total_steps=total, warmup_steps=0)
        optimiser.zero_grad()
        F.cross_entropy(F.linear(rows[batch], weight, bias), targets[batch]).backward()
        optimiser.step()
    return weight.detach(), bias.detach()


# --- many at once


def test_each_setting_is_what_torchs_gradient_descent_makes_of_it() -> None:
    one, labels, _, _ = make_blobs(230)
    other = 100 * one.square() - 7
    settings = [LinearHeadSetting("a", 0.1, 0.01), LinearHeadSetting("b", 1.0, 0.0), LinearHeadSetting("a", 0.5, 0.1)]
    fitted = fit({"a": one, "b": other}, labels, settings)
    for probe, setting in zip(fitted, settings, strict=True):
        weight, bias = by_torch(one if setting.column == "a" else other, labels, setting)
        assert torch.allclose(probe.weight, weight, atol=1e-5)
        assert torch.allclose(probe.bias, bias, atol=1e-5)
        assert probe.weight_decay == setting.weight_decay


def test_a_setting_learns_the_same_alone_and_among_others_and_one_that_diverges_harms_none() -> None:
    train, labels, _, _ = make_blobs(200)
    wild = LinearHeadSetting("last", 1e4, 1e4)
    among = fit(train, labels, [SWEEP[3], wild, *SWEEP])
    assert not among[1].weight.isfinite().all()
    for probe, setting in zip(among[2:], SWEEP, strict=True):
        (alone,) = fit(train, labels, [setting])
        assert torch.allclose(probe.weight, alone.weight, atol=1e-5)
        assert torch.allclose(probe.bias, alone.bias, atol=1e-5)


def test_shares_of_classes_teach_as_much_as_rows_with_labels_in_that_proportion() -> None:
    rows = make_blobs(60, dim=3)[0]
    counts = torch.randint(4, (60, 4), generator=torch.Generator().manual_seed(3))
    counts[:6] = 0
    counts[6:] += F.one_hot(torch.arange(54) % 4, 4)
    shares = counts.float()
    setting = LinearHeadSetting("last", 0.5, 0.01)
    (fitted,) = fit(rows, shares, [setting], batch_size=60, epochs=40)
    rows, shares = rows[6:], shares[6:] / shares[6:].sum(1, keepdim=True)
    given = (rows - rows.mean(0)) / rows.std(0, correction=0)
    weight, bias = torch.zeros(4, 3, requires_grad=True), torch.zeros(4, requires_grad=True)
    optimiser = torch.optim.SGD([weight, bias], lr=0.5, momentum=0.9)
    for step in range(40):
        optimiser.param_groups[0]["lr"] = 0.5 * warmup_cosine(step, total_steps=40, warmup_steps=0)
        optimiser.zero_grad()
        loss = -(shares * F.linear(given, weight, bias).log_softmax(1)).sum(1).mean() + 0.005 * weight.square().sum()
        loss.backward()
        optimiser.step()
    assert torch.allclose(fitted.weight, weight.detach(), atol=1e-5)
    assert torch.allclose(fitted.bias, bias.detach(), atol=1e-5)


def test_labels_and_all_of_one_class_are_the_same() -> None:
    train, labels, _, _ = make_blobs(100)
    (one,), (other,) = (fit(train, targets, SWEEP[5:6]) for targets in (labels, 7 * F.one_hot(labels, 4).float()))
    assert torch.equal(one.weight, other.weight)


def test_only_the_rows_that_are_given_are_learned_from() -> None:
    train, labels, _, _ = make_blobs(100)
    rows = torch.arange(0, 100, 3)
    (some,) = fit(train, labels, SWEEP[5:6], rows=rows, batch_size=100)
    (cut,) = fit(train[rows], labels[rows], SWEEP[5:6], batch_size=100)
    assert torch.allclose(some.weight, cut.weight, atol=1e-6)
    assert torch.equal(some.mean, cut.mean)


def test_fitting_is_a_function_of_the_seed_and_leaves_the_generator_alone() -> None:
    train, labels, _, _ = make_blobs(100)
    before = torch.get_rng_state()
    (one,), (same,), (other,) = (fit(train, labels, SWEEP[5:6], seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.weight, same.weight)
    assert not torch.equal(one.weight, other.weight)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("scale", "spread", "num_labels", "dim"), [(1, 1.0, 4, 6), (1, 2.0, 10, 40), (1e4, 2.0, 10, 40), (1, 4.0, 10, 100)]
)
def test_a_setting_ends_where_scikit_learns_logistic_regression_of_the_same_decay_does(
    scale: float, spread: float, num_labels: int, dim: int
) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    train, labels, test, truth = make_blobs(2000, spread=spread, labels=num_labels, dim=dim)
    units = scale ** torch.linspace(-1, 1, dim)
    train, test = train * units + 3, test * units + 3
    settings = [LinearHeadSetting("last", 0.3, decay) for decay in (0.001, 0.01, 0.1)]
    fitted = fit(train, labels, settings, epochs=100, batch_size=500, num_labels=num_labels)
    mean, std = train.mean(0), train.std(0, correction=0)
    for probe, setting in zip(fitted, settings, strict=True):
        theirs = linear_model.LogisticRegression(C=1 / (setting.weight_decay * 2000), max_iter=1000, tol=1e-6)
        theirs.fit(((train - mean) / std).double().numpy(), labels.numpy())
        expected = theirs.score(((test - mean) / std).double().numpy(), truth.numpy())
        assert 0.6 < expected < 0.95
        assert abs(accuracy(probe.predict(test), truth) - expected) < 0.0025  # of 2000 rows, 5
        assert torch.from_numpy(theirs.coef_).sub(probe.weight).norm() < 0.1 * probe.weight.norm()


# --- which one is taken


def test_the_setting_is_taken_that_does_best_on_what_is_held_out_and_fitted_again_to_all() -> None:
    train, labels, _, _ = make_blobs(100, spread=3.0, dim=30, seed=1)
    rows, held_out = split_training_validation(torch.arange(100), seed=0)
    settings = [
        LinearHeadSetting("last", 1e4, 1e4),
        *(LinearHeadSetting("last", 0.3, decay) for decay in (3.0, 0.3, 0.0001)),
    ]
    options = {"num_labels": 4, "epochs": 20, "batch_size": 50, "seed": 0}
    chosen = choose_linear_head({"last": train}, labels, settings, rows=rows, validation_rows=held_out, **options)
    fits = fit_linear_heads({"last": train}, labels, settings, rows=rows, **options)
    shares = [accuracy(probe.predict(train[held_out]), labels[held_out]) for probe in fits[1:]]
    assert chosen.validation_accuracies == (0.0, *shares)
    assert chosen.setting == settings[1 + shares.index(max(shares))]
    (again,) = fit_linear_heads({"last": train}, labels, [chosen.setting], rows=torch.arange(100), **options)
    assert torch.equal(chosen.probe.weight, again.weight)


def test_of_several_layers_the_one_is_taken_that_tells_labels_apart() -> None:
    train, labels, _, _ = make_blobs(200, spread=0.5)
    noise = torch.randn(200, 9, generator=torch.Generator().manual_seed(0))
    rows, held_out = split_training_validation(torch.arange(200), seed=0)
    settings = [LinearHeadSetting(column, 0.3, decay) for column in ("noise", "signal") for decay in (0.01, 0.0001)]
    features = {"signal": train, "noise": noise, "not asked for": noise}
    chosen = choose_linear_head(
        features, labels, settings, rows=rows, validation_rows=held_out, num_labels=4, epochs=10, batch_size=50, seed=0
    )
    assert chosen.setting.column == "signal"
    assert max(chosen.validation_accuracies[:2]) < 0.5 < min(chosen.validation_accuracies[2:])


def test_rows_that_hold_several_classes_are_right_by_the_share_of_the_one_that_is_found() -> None:
    probe = LinearProbe(torch.zeros(2), torch.ones(2), torch.eye(2), torch.zeros(2), 0.0)
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    targets = torch.tensor([[30.0, 10.0], [0.0, 5.0], [0.0, 0.0]])
    assert target_accuracy(probe, features, targets, torch.arange(3)) == pytest.approx((0.75 + 1) / 2)
    assert target_accuracy(probe, features, torch.tensor([0, 0, 1]), torch.tensor([0, 1])) == 0.5


def test_labels_at_random_are_a_matter_of_chance() -> None:
    train, labels, test, truth = make_blobs(1000, spread=3.0)
    permuted = labels[torch.randperm(1000, generator=torch.Generator().manual_seed(5))]
    rows, held_out = split_training_validation(torch.arange(1000), seed=0)
    chosen = choose_linear_head(
        {"last": train},
        permuted,
        SWEEP,
        rows=rows,
        validation_rows=held_out,
        num_labels=4,
        epochs=5,
        batch_size=100,
        seed=0,
    )
    assert accuracy(chosen.probe.predict(test), truth) == pytest.approx(0.25, abs=0.07)


# --- rows


@given(st.integers(1, 200), st.integers(1, 60), st.integers(0, 3))
def test_an_epoch_has_every_row_once_in_batches_that_differ_by_one_row_at_most(
    count: int, batch_size: int, seed: int
) -> None:
    rows = 3 * torch.arange(count)
    batches = list(shuffled_batches(rows, epochs=2, batch_size=batch_size, seed=seed))
    per_epoch = num_batches(count, batch_size)
    assert len(batches) == 2 * per_epoch
    for epoch in (batches[:per_epoch], batches[per_epoch:]):
        assert torch.equal(torch.cat(epoch).sort().values, rows)
        sizes = [len(batch) for batch in epoch]
        assert max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1


@given(st.sets(st.integers(0, 300), min_size=35), st.integers(1, 7), st.integers(0, 3))
def test_a_fifth_of_the_photos_is_held_out_with_all_their_rows(chosen: set[int], per_photo: int, seed: int) -> None:
    rows = torch.tensor(sorted(chosen))
    rest, held_out = split_training_validation(rows, seed=seed, rows_per_image=per_photo)
    assert torch.equal(torch.cat([rest, held_out]).sort().values, rows)
    photos = [set((part // per_photo).tolist()) for part in (rest, held_out)]
    assert not photos[0] & photos[1]
    assert len(photos[1]) == len(photos[0] | photos[1]) // 5
    assert torch.equal(rest, rest.sort().values)


# --- standardising


def test_mean_and_deviation_are_those_of_the_rows_however_many_and_however_far_from_0() -> None:
    features = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 1e-3, 1e3])
    features += torch.tensor([0, 1e1, -1e4])
    rows = torch.arange(20_000)[::2]
    mean, std = mean_and_std(features, rows)
    expected = features[rows].double()
    assert torch.allclose(mean, expected.mean(0).float(), rtol=1e-6, atol=1e-7)
    assert torch.allclose(std, expected.std(0, correction=0).float(), rtol=1e-5)


def test_a_feature_that_never_changes_stays_at_nothing() -> None:
    features = torch.tensor([[0.1, 0.0, 5.0]]).repeat(9000, 1)
    mean, std = mean_and_std(features, torch.arange(9000))
    assert std.tolist() == [1, 1, 1]
    assert ((features - mean) / std).abs().max() < 1e-6


def test_rows_of_which_none_says_anything_are_refused() -> None:
    with pytest.raises(UserError, match="^a linear probe needs training rows with labels, got none$"):
        fit(torch.ones(3, 2), torch.zeros(3, 4), SWEEP)


def test_photos_too_few_to_choose_settings_by_are_refused() -> None:
    with pytest.raises(UserError) as caught:
        split_training_validation(torch.arange(8), seed=0, rows_per_image=2)
    assert str(caught.value) == "a probe needs at least 5 training photos, one of them to choose settings by, got 4"
