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
    compute_mean_std,
    fit_linear_heads,
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


def fit_with_sgd(
    features: Tensor, targets: Tensor, setting: LinearHeadSetting, epochs: int = 3
) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of the same fit with `torch.optim.SGD` and autograd."""
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


def test_each_setting_is_fitted_like_with_sgd_of_torch() -> None:
    one, labels, _, _ = make_blobs(230)
    other = 100 * one.square() - 7
    settings = [LinearHeadSetting("a", 0.1, 0.01), LinearHeadSetting("b", 1.0, 0.0), LinearHeadSetting("a", 0.5, 0.1)]
    fitted = fit({"a": one, "b": other}, labels, settings)
    for probe, setting in zip(fitted, settings, strict=True):
        weight, bias = fit_with_sgd(one if setting.column == "a" else other, labels, setting)
        assert torch.allclose(probe.weight, weight, atol=1e-5)
        assert torch.allclose(probe.bias, bias, atol=1e-5)
        assert probe.weight_decay == setting.weight_decay


def test_settings_are_fitted_independently_even_if_one_diverges() -> None:
    train, labels, _, _ = make_blobs(200)
    diverging = LinearHeadSetting("last", 1e4, 1e4)
    together = fit(train, labels, [SWEEP[3], diverging, *SWEEP])
    assert not together[1].weight.isfinite().all()
    for probe, setting in zip(together[2:], SWEEP, strict=True):
        (alone,) = fit(train, labels, [setting])
        assert torch.allclose(probe.weight, alone.weight, atol=1e-5)
        assert torch.allclose(probe.bias, alone.bias, atol=1e-5)


def test_class_counts_are_fitted_with_soft_cross_entropy() -> None:
    rows = make_blobs(60, dim=3)[0]
    counts = torch.randint(4, (60, 4), generator=torch.Generator().manual_seed(3))
    counts[:6] = 0
    counts[6:] += F.one_hot(torch.arange(54) % 4, 4)
    targets = counts.float()
    setting = LinearHeadSetting("last", 0.5, 0.01)
    (fitted,) = fit(rows, targets, [setting], batch_size=60, epochs=40)
    rows, targets = rows[6:], targets[6:] / targets[6:].sum(1, keepdim=True)
    standardised = (rows - rows.mean(0)) / rows.std(0, correction=0)
    weight, bias = torch.zeros(4, 3, requires_grad=True), torch.zeros(4, requires_grad=True)
    optimiser = torch.optim.SGD([weight, bias], lr=0.5, momentum=0.9)
    for step in range(40):
        optimiser.param_groups[0]["lr"] = 0.5 * warmup_cosine(step, total_steps=40, warmup_steps=0)
        optimiser.zero_grad()
        loss = -(targets * F.linear(standardised, weight, bias).log_softmax(1)).sum(1).mean()
        (loss + 0.005 * weight.square().sum()).backward()
        optimiser.step()
    assert torch.allclose(fitted.weight, weight.detach(), atol=1e-5)
    assert torch.allclose(fitted.bias, bias.detach(), atol=1e-5)


def test_labels_and_counts_of_one_class_give_the_same_fit() -> None:
    train, labels, _, _ = make_blobs(100)
    (one,), (other,) = (fit(train, targets, SWEEP[5:6]) for targets in (labels, 7 * F.one_hot(labels, 4).float()))
    assert torch.equal(one.weight, other.weight)


def test_only_the_training_rows_are_fitted() -> None:
    train, labels, _, _ = make_blobs(100)
    rows = torch.arange(0, 100, 3)
    (fitted,) = fit(train, labels, SWEEP[5:6], rows=rows, batch_size=100)
    (expected,) = fit(train[rows], labels[rows], SWEEP[5:6], batch_size=100)
    assert torch.allclose(fitted.weight, expected.weight, atol=1e-6)
    assert torch.equal(fitted.mean, expected.mean)


def test_fits_depend_only_on_the_seed_and_not_on_the_global_generator() -> None:
    train, labels, _, _ = make_blobs(100)
    before = torch.get_rng_state()
    (one,), (same,), (other,) = (fit(train, labels, SWEEP[5:6], seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.weight, same.weight)
    assert not torch.equal(one.weight, other.weight)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("scale", "spread", "num_labels", "dim"), [(1, 1.0, 4, 6), (1, 2.0, 10, 40), (1e4, 2.0, 10, 40), (1, 4.0, 10, 100)]
)
def test_fits_converge_to_scikit_learns_logistic_regression(
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
        assert abs(accuracy(probe.predict(test), truth) - expected) < 0.0025  # 5 of 2000 rows
        assert torch.from_numpy(theirs.coef_).sub(probe.weight).norm() < 0.1 * probe.weight.norm()


def test_the_best_setting_on_validation_rows_is_chosen_and_fitted_again_to_all_rows() -> None:
    train, labels, _, _ = make_blobs(100, spread=3.0, dim=30, seed=1)
    rows, held_out = split_training_validation(torch.arange(100), seed=0)
    settings = [
        LinearHeadSetting("last", 1e4, 1e4),
        *(LinearHeadSetting("last", 0.3, decay) for decay in (3.0, 0.3, 0.0001)),
    ]
    options = {"num_labels": 4, "epochs": 20, "batch_size": 50, "seed": 0}
    chosen = choose_linear_head({"last": train}, labels, settings, rows=rows, validation_rows=held_out, **options)
    fits = fit_linear_heads({"last": train}, labels, settings, rows=rows, **options)
    accuracies = [accuracy(probe.predict(train[held_out]), labels[held_out]) for probe in fits[1:]]
    assert chosen.validation_accuracies == (0.0, *accuracies)
    assert chosen.setting == settings[1 + accuracies.index(max(accuracies))]
    (again,) = fit_linear_heads({"last": train}, labels, [chosen.setting], rows=torch.arange(100), **options)
    assert torch.equal(chosen.probe.weight, again.weight)


def test_an_informative_column_is_chosen_over_noise() -> None:
    train, labels, _, _ = make_blobs(200, spread=0.5)
    noise = torch.randn(200, 9, generator=torch.Generator().manual_seed(0))
    rows, held_out = split_training_validation(torch.arange(200), seed=0)
    settings = [LinearHeadSetting(column, 0.3, decay) for column in ("noise", "signal") for decay in (0.01, 0.0001)]
    features = {"signal": train, "noise": noise, "unused": noise}
    chosen = choose_linear_head(
        features, labels, settings, rows=rows, validation_rows=held_out, num_labels=4, epochs=10, batch_size=50, seed=0
    )
    assert chosen.setting.column == "signal"
    assert max(chosen.validation_accuracies[:2]) < 0.5 < min(chosen.validation_accuracies[2:])


def test_rows_with_several_classes_count_by_the_fraction_of_the_predicted_one() -> None:
    probe = LinearProbe(torch.zeros(2), torch.ones(2), torch.eye(2), torch.zeros(2), 0.0)
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    targets = torch.tensor([[30.0, 10.0], [0.0, 5.0], [0.0, 0.0]])
    assert target_accuracy(probe, features, targets, torch.arange(3)) == pytest.approx((0.75 + 1) / 2)
    assert target_accuracy(probe, features, torch.tensor([0, 0, 1]), torch.tensor([0, 1])) == 0.5


def test_accuracy_on_random_labels_is_at_chance_level() -> None:
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


@given(st.integers(1, 200), st.integers(1, 60), st.integers(0, 3))
def test_epochs_have_every_row_once_in_batches_of_nearly_equal_size(count: int, batch_size: int, seed: int) -> None:
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
def test_a_fifth_of_the_images_is_held_out_with_all_their_rows(
    chosen: set[int], rows_per_image: int, seed: int
) -> None:
    rows = torch.tensor(sorted(chosen))
    training, validation = split_training_validation(rows, seed=seed, rows_per_image=rows_per_image)
    assert torch.equal(torch.cat([training, validation]).sort().values, rows)
    images = [set((split // rows_per_image).tolist()) for split in (training, validation)]
    assert not images[0] & images[1]
    assert len(images[1]) == len(images[0] | images[1]) // 5
    assert torch.equal(training, training.sort().values)


def test_mean_and_deviation_are_accurate_for_many_rows_far_from_0() -> None:
    features = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 1e-3, 1e3])
    features += torch.tensor([0, 1e1, -1e4])
    rows = torch.arange(20_000)[::2]
    mean, std = compute_mean_std(features, rows)
    expected = features[rows].double()
    assert torch.allclose(mean, expected.mean(0).float(), rtol=1e-6, atol=1e-7)
    assert torch.allclose(std, expected.std(0, correction=0).float(), rtol=1e-5)


def test_constant_features_are_standardised_to_0() -> None:
    features = torch.tensor([[0.1, 0.0, 5.0]]).repeat(9000, 1)
    mean, std = compute_mean_std(features, torch.arange(9000))
    assert std.tolist() == [1, 1, 1]
    assert ((features - mean) / std).abs().max() < 1e-6


def test_rows_without_labels_are_rejected() -> None:
    with pytest.raises(
        UserError, match="^train: expected labelled samples for a linear probe, got none. Use a labelled set$"
    ):
        fit(torch.ones(3, 2), torch.zeros(3, 4), SWEEP)


def test_too_few_images_to_choose_settings_on_are_rejected() -> None:
    with pytest.raises(UserError) as caught:
        split_training_validation(torch.arange(8), seed=0, rows_per_image=2)
    assert str(caught.value) == (
        "train: expected at least 5 images, one of them to choose settings on, got 4. Use more images"
    )
