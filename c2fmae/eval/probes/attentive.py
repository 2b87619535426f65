"""Attentive probes: a classifier whose learned queries attend to the tokens of a frozen encoder.

They are those of "Attention, Please! Revisiting Attentive Probing Through the Lens of Efficiency" (2026): tokens are
their own keys, and each query reads its own group of the values' columns.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from c2fmae.core.errors import UserError
from c2fmae.core.optimiser import build_adamw, set_lr
from c2fmae.core.schedules import warmup_cosine
from c2fmae.core.seeding import derive_seed
from c2fmae.eval.evaluation import ModelUnderTest
from c2fmae.eval.metrics import Metric
from c2fmae.eval.probes.batching import num_batches, shuffled_batches
from c2fmae.eval.probes.config import AttentiveProbeEvaluation
from c2fmae.eval.probes.train_test import (
    TrainTestFeatures,
    draw_label_subsets,
    extract_labelled_sets,
    label_fraction_tags,
    make_accuracy_metrics,
)

_ROWS_PER_BATCH = 256

TokenReader = Callable[[Int64[Tensor, " row"]], Float[Tensor, "row token dim"]]
"""From rows, by index, to their tokens: those of all rows need not fit in memory."""


@dataclass(frozen=True)
class AttentiveProbeSetting:
    """What an attentive probe is, and how it is fitted."""

    num_queries: int = 32
    reduction_factor: int = 1
    """How many times narrower than tokens is what is classified."""
    lr: float = 0.001
    """AdamW's, after a tenth of the steps; then down a cosine to 0."""
    weight_decay: float = 0.01
    epochs: int = 30
    batch_size: int = 256
    seed: int = 0


class AttentiveProbe(nn.Module):
    """A classifier of tokens, by attention from learned queries."""

    def __init__(
        self, dim: int, num_labels: int, *, num_queries: int, reduction_factor: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        width = dim // reduction_factor
        if dim % reduction_factor or width % num_queries:
            raise UserError(
                f"num_queries: expected a number that divides the width of what is classified, {dim} / "
                f"{reduction_factor}, "
                f"got {num_queries}"
            )
        self.queries = nn.Parameter(0.02 * torch.randn(num_queries, dim, generator=generator))
        values = torch.randn(num_queries, dim, width // num_queries, generator=generator)
        self.values = nn.Parameter(values / dim**0.5)
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.head = nn.utils.skip_init(nn.Linear, width, num_labels)  # whose own draws are not the generator's
        nn.init.trunc_normal_(self.head.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.head.bias)

    def attend(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch query token"]:
        """Return how much each query looks at each token: 1 in all."""
        logits = self.queries @ tokens.mT / math.sqrt(tokens.shape[-1])
        return logits.softmax(dim=-1)

    def pool(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch width"]:
        """Return what the queries see, side by side."""
        # The mean of values is the value of the mean: one product with a matrix for each query, not for each token
        means = (self.attend(tokens) @ tokens).transpose(0, 1)
        return torch.bmm(means, self.values).transpose(0, 1).flatten(1)

    def forward(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch label"]:
        """Return a score for each label."""
        scores: Tensor = self.head(self.norm(self.pool(tokens)))
        return scores

    @torch.no_grad()
    def predict(self, tokens: Float[Tensor, "batch token dim"]) -> Int64[Tensor, " batch"]:
        """Return the label with the highest score, the lowest of several such."""
        scores: Tensor = self(tokens.float())
        return scores.argmax(dim=1)


@torch.enable_grad()
def fit_attentive_probe(
    read_tokens: TokenReader,
    labels: Int64[Tensor, " row"],
    setting: AttentiveProbeSetting,
    *,
    rows: Int64[Tensor, " given"],
    num_labels: int,
) -> AttentiveProbe:
    """Return a probe in evaluation mode that was fitted to `rows`, whose tokens are read batch by batch.

    A tensor of all tokens reads as `tokens.__getitem__`.
    """
    if len(rows) < 2:
        raise UserError(f"an attentive probe needs at least 2 training rows, got {len(rows)}")
    generator = torch.Generator().manual_seed(derive_seed(setting.seed, "probe weights"))
    probe = AttentiveProbe(
        read_tokens(rows[:1]).shape[-1],
        num_labels,
        num_queries=setting.num_queries,
        reduction_factor=setting.reduction_factor,
        generator=generator,
    )
    matrices = [probe.values, probe.head.weight]
    optimiser = build_adamw(
        [
            {"params": matrices, "weight_decay": setting.weight_decay, "lr_scale": 1.0},
            {"params": [probe.queries, probe.head.bias], "weight_decay": 0.0, "lr_scale": 1.0},
        ],
        betas=(0.9, 0.999),
    )
    total = setting.epochs * num_batches(len(rows), setting.batch_size)
    batches = shuffled_batches(rows, epochs=setting.epochs, batch_size=setting.batch_size, seed=setting.seed)
    for step, batch in enumerate(batches):
        set_lr(optimiser, setting.lr * warmup_cosine(step, total_steps=total, warmup_steps=total // 10))
        optimiser.zero_grad()
        F.cross_entropy(probe(read_tokens(batch).float()), labels[batch]).backward()
        optimiser.step()
    return probe.eval()


def run_attentive_probe(config: AttentiveProbeEvaluation, model: ModelUnderTest) -> Iterator[Metric]:
    """Fit a probe on the main process for each fraction of the labels, and yield its accuracy."""
    sets, world = extract_labelled_sets(config, model), model.world
    yield sets.overlap_metric()
    name = f"patches {config.resolve_layers(model.backbone)[0]}"
    readers = (sets.train.make_row_reader(name), sets.test.make_row_reader(name)) if world.is_main else None
    for fraction, subsets in draw_label_subsets(config, sets.train.labels):
        accuracies = [
            world.broadcast_object(_test_accuracy(config, sets, *readers, rows) if readers else None)
            for rows in subsets
        ]
        yield from make_accuracy_metrics("top1", accuracies, sets.num_test_images, label_fraction_tags(fraction))


def _test_accuracy(
    config: AttentiveProbeEvaluation,
    sets: TrainTestFeatures,
    read_train: TokenReader,
    read_test: TokenReader,
    rows: Int64[Tensor, " row"],
) -> float:
    """Return the accuracy on the test images of a probe that is fitted to these training rows."""
    setting = AttentiveProbeSetting(
        num_queries=config.num_queries,
        reduction_factor=config.narrowing,
        lr=config.lr,
        weight_decay=config.weight_decay,
        epochs=config.epochs,
        batch_size=config.head_batch_size,
        seed=config.seed,
    )
    probe = fit_attentive_probe(read_train, sets.train.labels, setting, rows=rows, num_labels=sets.num_labels)
    test_rows = torch.arange(sets.num_test_images).split(_ROWS_PER_BATCH)
    predicted = torch.cat([probe.predict(read_test(batch)) for batch in test_rows])
    return (predicted == sets.test.labels).double().mean().item()
