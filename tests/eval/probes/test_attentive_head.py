import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from c2fmae.core.errors import UserError
from c2fmae.eval.probes.attentive import AttentiveProbe, AttentiveProbeSetting, fit_attentive_probe
from c2fmae.eval.probes.linear_heads import LinearHeadSetting, fit_linear_heads
from tests.eval.probes.blobs import accuracy

pytestmark = pytest.mark.numeric

SMALL = AttentiveProbeSetting(num_queries=4, lr=0.01, epochs=30, batch_size=50)


def build_probe(dim: int, *, num_queries: int, narrowing: int = 1, labels: int = 3) -> AttentiveProbe:
    generator = torch.Generator().manual_seed(0)
    return AttentiveProbe(dim, labels, num_queries=num_queries, reduction_factor=narrowing, generator=generator)


def draw_tokens(rows: int, *, dim: int = 12, tokens: int = 9, seed: int = 1) -> Tensor:
    return torch.randn(rows, tokens, dim, generator=torch.Generator().manual_seed(seed))


def draw_informative_tokens(rows: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Return tokens of noise, except one in 16, at a random position, that is marked and encodes the label."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(rows, 16, 8, generator=generator)
    tokens[..., :4] = 0
    labels = torch.randint(3, (rows,), generator=generator)
    position = torch.randint(16, (rows,), generator=generator)
    tokens[torch.arange(rows), position] = 0
    tokens[torch.arange(rows), position, 0] = 8
    tokens[torch.arange(rows), position, 1 + labels] = 3
    tokens[..., 1:4] += 2 * torch.randn(rows, 16, 3, generator=generator) * (tokens[..., :1] == 0)
    return tokens, labels


@pytest.mark.parametrize(("num_queries", "narrowing"), [(1, 1), (4, 1), (3, 2), (12, 1)])
def test_pooling_equals_attention_over_projected_tokens(num_queries: int, narrowing: int) -> None:
    probe = build_probe(12, num_queries=num_queries, narrowing=narrowing)
    nn.init.normal_(probe.queries)  # so that attention is not uniform
    tokens = draw_tokens(5)
    width = 12 // narrowing // num_queries
    outputs = []
    for row in tokens:
        values = torch.cat(list(probe.values), dim=1)  # one matrix for all queries
        projected = row @ values
        for number, query in enumerate(probe.queries):
            attention = (row @ query / 12**0.5).softmax(0)
            outputs.append(attention @ projected[:, number * width : (number + 1) * width])
    assert torch.allclose(probe.pool(tokens).flatten(), torch.cat(outputs), atol=1e-5)


@given(st.permutations(range(9)))
def test_the_order_of_tokens_does_not_matter(order: list[int]) -> None:
    probe, tokens = build_probe(12, num_queries=3).eval(), draw_tokens(4)
    assert torch.allclose(probe(tokens[:, order]), probe(tokens), atol=1e-6)
    assert torch.allclose(probe.attend(tokens[:, order]), probe.attend(tokens)[..., order], atol=1e-6)
    assert torch.allclose(probe.attend(tokens).sum(-1), torch.ones(4, 3))


def test_one_informative_token_is_found_where_the_mean_of_tokens_is_not_enough() -> None:
    tokens, labels = draw_informative_tokens(1000, seed=0)
    test, truth = draw_informative_tokens(1000, seed=1)
    fitted = fit_attentive_probe(tokens.__getitem__, labels, SMALL, rows=torch.arange(1000), num_labels=3)
    assert accuracy(fitted.predict(test), truth) > 0.95
    (linear,) = fit_linear_heads(
        {"mean": tokens.mean(1)},
        labels,
        [LinearHeadSetting("mean", lr=0.1, weight_decay=0.01)],
        rows=torch.arange(1000),
        num_labels=3,
        epochs=30,
        batch_size=50,
        seed=0,
    )
    assert accuracy(linear.predict(test.mean(1)), truth) < 0.75


def test_only_training_rows_are_read_batch_by_batch() -> None:
    tokens, labels = draw_tokens(40), torch.arange(40) % 3
    training_rows, calls = torch.arange(0, 40, 2), []

    def read(rows: Tensor) -> Tensor:
        calls.append(rows)
        return tokens[rows].half()

    setting = dataclasses.replace(SMALL, batch_size=7, epochs=2)
    fit_attentive_probe(read, labels, setting, rows=training_rows, num_labels=3)
    assert max(map(len, calls)) == 7
    assert set(torch.cat(calls).tolist()) == set(training_rows.tolist())
    assert len(torch.cat(calls)) == 1 + 2 * len(training_rows)  # and one row for its width


def test_fits_depend_only_on_the_seed_and_ignore_no_grad() -> None:
    tokens, labels = draw_tokens(40), torch.arange(40) % 3
    before = torch.get_rng_state()
    setting = dataclasses.replace(SMALL, epochs=2)
    with torch.no_grad():
        one, same, other = (
            fit_attentive_probe(
                tokens.__getitem__, labels, dataclasses.replace(setting, seed=seed), rows=torch.arange(40), num_labels=3
            )
            for seed in (0, 0, 1)
        )
    assert torch.equal(torch.get_rng_state(), before)
    assert not one.training
    assert torch.equal(one.queries, same.queries)
    assert torch.equal(one.head.weight, same.head.weight)
    assert not torch.equal(one.queries, other.queries)
    assert not one.predict(tokens).requires_grad


def test_numbers_of_queries_that_do_not_divide_the_width_are_rejected() -> None:
    for num_queries, narrowing in ((5, 1), (4, 6), (1, 5)):
        with pytest.raises(UserError) as caught:
            build_probe(12, num_queries=num_queries, narrowing=narrowing)
        expected = f"num_queries: expected a divisor of the pooled width, 12 / {narrowing}, got {num_queries}. "
        assert str(caught.value) == f"{expected}Change num_queries or narrowing"


def test_a_single_training_row_is_rejected() -> None:
    with pytest.raises(
        UserError, match="^train: expected at least 2 images for an attentive probe, got 1. Use more images$"
    ):
        fit_attentive_probe(
            draw_tokens(1).__getitem__, torch.zeros(1, dtype=torch.long), SMALL, rows=torch.arange(1), num_labels=3
        )
