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


def probe_of(dim: int, *, num_queries: int, narrowing: int = 1, labels: int = 3) -> AttentiveProbe:
    generator = torch.Generator().manual_seed(0)
    return AttentiveProbe(dim, labels, num_queries=num_queries, reduction_factor=narrowing, generator=generator)


def tokens_of(rows: int, *, dim: int = 12, tokens: int = 9, seed: int = 1) -> Tensor:
    return torch.randn(rows, tokens, dim, generator=torch.Generator().manual_seed(seed))


def one_token_that_tells(rows: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Noise, but for one token in 16, anywhere, that is marked and shows the label."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(rows, 16, 8, generator=generator)
    tokens[..., :4] = 0
    labels = torch.randint(3, (rows,), generator=generator)
    place = torch.randint(16, (rows,), generator=generator)
    tokens[torch.arange(rows), place] = 0
    tokens[torch.arange(rows), place, 0] = 8
    tokens[torch.arange(rows), place, 1 + labels] = 3
    tokens[..., 1:4] += 2 * torch.randn(rows, 16, 3, generator=generator) * (tokens[..., :1] == 0)
    return tokens, labels


@pytest.mark.parametrize(("num_queries", "narrowing"), [(1, 1), (4, 1), (3, 2), (12, 1)])
def test_what_the_queries_see_is_what_every_tokens_value_would_give(num_queries: int, narrowing: int) -> None:
    probe = probe_of(12, num_queries=num_queries, narrowing=narrowing)
    nn.init.normal_(probe.queries)  # looks that differ
    tokens = tokens_of(5)
    width = 12 // narrowing // num_queries
    seen = []
    for row in tokens:
        values = torch.cat(list(probe.values), dim=1)  # one matrix: all groups of columns side by side
        projected = row @ values
        for number, query in enumerate(probe.queries):
            look = (row @ query / 12**0.5).softmax(0)
            seen.append(look @ projected[:, number * width : (number + 1) * width])
    assert torch.allclose(probe.pool(tokens).flatten(), torch.cat(seen), atol=1e-5)


@given(st.permutations(range(9)))
def test_where_a_token_stands_does_not_count(order: list[int]) -> None:
    probe, tokens = probe_of(12, num_queries=3).eval(), tokens_of(4)
    assert torch.allclose(probe(tokens[:, order]), probe(tokens), atol=1e-6)
    assert torch.allclose(probe.attend(tokens[:, order]), probe.attend(tokens)[..., order], atol=1e-6)
    assert torch.allclose(probe.attend(tokens).sum(-1), torch.ones(4, 3))


def test_one_token_that_tells_is_found_among_many_where_their_mean_hides_it() -> None:
    tokens, labels = one_token_that_tells(1000, seed=0)
    test, truth = one_token_that_tells(1000, seed=1)
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


def test_only_rows_that_are_given_are_read_a_batch_at_a_time() -> None:
    tokens, labels = tokens_of(40), torch.arange(40) % 3
    given_rows, asked = torch.arange(0, 40, 2), []

    def read(rows: Tensor) -> Tensor:
        asked.append(rows)
        return tokens[rows].half()

    setting = dataclasses.replace(SMALL, batch_size=7, epochs=2)
    fit_attentive_probe(read, labels, setting, rows=given_rows, num_labels=3)
    assert max(map(len, asked)) == 7
    assert set(torch.cat(asked).tolist()) == set(given_rows.tolist())
    assert len(torch.cat(asked)) == 1 + 2 * len(given_rows)  # and one to see how wide they are


def test_fitting_is_a_function_of_the_seed_and_leaves_the_generator_and_the_mode_of_gradients_alone() -> None:
    tokens, labels = tokens_of(40), torch.arange(40) % 3
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


def test_queries_that_do_not_share_out_the_width_are_refused() -> None:
    for num_queries, narrowing in ((5, 1), (4, 6), (1, 5)):
        with pytest.raises(UserError) as caught:
            probe_of(12, num_queries=num_queries, narrowing=narrowing)
        expected = "num_queries: expected a number that divides the width of what is classified, 12 / "
        assert str(caught.value) == f"{expected}{narrowing}, got {num_queries}"


def test_one_row_is_too_few() -> None:
    with pytest.raises(UserError, match="^an attentive probe needs at least 2 training rows, got 1$"):
        fit_attentive_probe(
            tokens_of(1).__getitem__, torch.zeros(1, dtype=torch.long), SMALL, rows=torch.arange(1), num_labels=3
        )
