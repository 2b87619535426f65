import math

import pytest
import torch
from torch import Tensor, nn

from c2fmae.eval.probes.batching import shuffled_batches
from c2fmae.eval.probes.lars import fit_lars_probe, lars_step
from c2fmae.eval.probes.linear_heads import LinearProbe
from tests.eval.probes.blobs import accuracy, make_blobs

pytestmark = pytest.mark.numeric


def fit(train: Tensor, labels: Tensor, *, seed: int = 0, epochs: int = 20, batch_size: int = 64) -> LinearProbe:
    rows = torch.arange(len(train))
    return fit_lars_probe(
        train, labels, rows=rows, num_labels=4, epochs=epochs, warmup_epochs=2, batch_size=batch_size, seed=seed
    )


def test_a_step_equals_the_formula() -> None:
    for parameter, gradient in (([[3.0, 4.0]], [[0.6, 0.8]]), ([3.0, 4.0], [0.6, 0.8])):
        updated, velocity = torch.tensor(parameter), torch.tensor(parameter) * 0 + 0.5
        lars_step(updated, velocity, torch.tensor(gradient), lr=2.0)
        trust = 0.001 * 5 / 1 if updated.ndim == 2 else 1
        expected = 0.9 * 0.5 + trust * torch.tensor(gradient)
        assert torch.allclose(velocity, expected)
        assert torch.allclose(updated, torch.tensor(parameter) - 2 * expected)


@pytest.mark.parametrize(("parameter", "gradient"), [(0.0, 0.5), (0.5, 0.0)])
def test_a_step_is_not_scaled_if_the_parameter_or_the_gradient_is_zero(parameter: float, gradient: float) -> None:
    updated = torch.full((2, 3), parameter)
    lars_step(updated, torch.zeros(2, 3), torch.full((2, 3), gradient), lr=0.1)
    assert torch.allclose(updated, torch.full((2, 3), parameter - 0.1 * gradient))


def test_a_fit_equals_batch_norm_and_a_linear_layer_with_lars() -> None:
    train, labels, test, _ = make_blobs(150)
    train, test = 30 * train + 5, 30 * test + 5
    fitted = fit(train, labels, epochs=5)

    start = fit(train, labels, epochs=0)
    norm, linear = nn.BatchNorm1d(6, affine=False, eps=1e-6), nn.Linear(6, 4)
    linear.load_state_dict({"weight": start.weight, "bias": start.bias})
    velocity = {name: torch.zeros_like(value) for name, value in linear.named_parameters()}
    for step, batch in enumerate(shuffled_batches(torch.arange(150), epochs=5, batch_size=64, seed=0)):
        lr = 0.1 * 50 / 256  # three batches of 50
        lr *= (step + 1) / 6 if step < 6 else 0.5 * (1 + math.cos(math.pi * (step - 6) / 9))
        linear.zero_grad()
        nn.functional.cross_entropy(linear(norm(train[batch])), labels[batch]).backward()
        for name, value in linear.named_parameters():
            assert value.grad is not None
            scale = 0.001 * value.norm() / value.grad.norm() if name == "weight" else 1.0
            velocity[name] = 0.9 * velocity[name] + scale * value.grad
            value.data -= lr * velocity[name].detach()
    assert torch.allclose(fitted.weight, linear.weight, atol=1e-6)
    assert torch.allclose(fitted.bias, linear.bias, atol=1e-6)
    norm.eval()
    assert torch.allclose(fitted.logits(test), linear(norm(test)), atol=1e-5)


def test_weights_are_initialised_with_a_deviation_of_0_01_and_biases_with_0() -> None:
    train, labels, _, _ = make_blobs(150, dim=1000)
    start = fit(train, labels, epochs=0)
    assert start.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert start.bias.tolist() == [0] * 4
    assert not torch.equal(start.weight, fit(train, labels, epochs=0, seed=1).weight)


def test_separable_classes_are_classified_and_the_global_generator_is_not_used() -> None:
    train, labels, test, truth = make_blobs(1000, spread=0.5, dim=20)
    before = torch.get_rng_state()
    fitted = fit(train, labels, epochs=2000, batch_size=1000)
    assert torch.equal(torch.get_rng_state(), before)
    assert accuracy(fitted.predict(test), truth) > 0.95
