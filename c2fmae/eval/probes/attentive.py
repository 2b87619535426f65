"""Attentive probes: a classifier whose learned queries attend to the tokens of a frozen encoder.

The design is that of "Attention, Please! Revisiting Attentive Probing Through the Lens of Efficiency" (2026): tokens
are used as keys without a projection, and each query reads its own group of the values' columns.
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
"""A function from row indices to tokens, so that not all tokens have to fit in memory."""


@dataclass(frozen=True)
class AttentiveProbeSetting:
    """Architecture and optimisation of an attentive probe."""

    num_queries: int = 32
    reduction_factor: int = 1
    """Width of a token divided by the width of the pooled vector."""
    lr: float = 0.001
    """Peak learning rate of AdamW: a linear warm-up over a tenth of the steps, then a cosine schedule to 0."""
    weight_decay: float = 0.01
    epochs: int = 30
    batch_size: int = 256
    seed: int = 0


class AttentiveProbe(nn.Module):
    """A classifier of tokens with attention from learned queries."""

    def __init__(
        self, dim: int, num_labels: int, *, num_queries: int, reduction_factor: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        width = dim // reduction_factor
        if dim % reduction_factor or width % num_queries:
            raise UserError(
                f"num_queries: expected a divisor of the pooled width, {dim} / {reduction_factor}, got {num_queries}. "
                "Change num_queries or narrowing"
            )
        self.queries = nn.Parameter(0.02 * torch.randn(num_queries, dim, generator=generator))
        values = torch.randn(num_queries, dim, width // num_queries, generator=generator)
        self.values = nn.Parameter(values / dim**0.5)
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.head = nn.utils.skip_init(nn.Linear, width, num_labels)  # initialised below, from the generator
        nn.init.trunc_normal_(self.head.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.head.bias)

    def attend(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch query token"]:
        """Return the attention of each query to each token, which sums to 1 over tokens."""
        logits = self.queries @ tokens.mT / math.sqrt(tokens.shape[-1])
        return logits.softmax(dim=-1)

    def pool(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch width"]:
        """Return the concatenated outputs of the queries."""
        # Projecting the mean token equals averaging projected tokens, with one projection for each query
        means = (self.attend(tokens) @ tokens).transpose(0, 1)
        return torch.bmm(means, self.values).transpose(0, 1).flatten(1)

    def forward(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch label"]:
        """Return the logits of labels."""
        logits: Tensor = self.head(self.norm(self.pool(tokens)))
        return logits

    @torch.no_grad()
    def predict(self, tokens: Float[Tensor, "batch token dim"]) -> Int64[Tensor, " batch"]:
        """Return the label with the highest logit, the lowest label if several are equal."""
        logits: Tensor = self(tokens.float())
        return logits.argmax(dim=1)


@torch.enable_grad()
def fit_attentive_probe(
    read_tokens: TokenReader,
    labels: Int64[Tensor, " row"],
    setting: AttentiveProbeSetting,
    *,
    rows: Int64[Tensor, " training_row"],
    num_labels: int,
) -> AttentiveProbe:
    """Fit a probe to `rows`, reading tokens batch by batch, and return it in evaluation mode.

    For a tensor of all tokens, pass `tokens.__getitem__`.
    """
    if len(rows) < 2:
        raise UserError(f"train: expected at least 2 images for an attentive probe, got {len(rows)}. Use more images")
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
    """Fit a probe to these training rows, and return its accuracy on the test images."""
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
