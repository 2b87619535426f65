"""Classification as the training loop sees it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.granularity import GRANULARITIES
from c2fmae.core.loop import StepLoss, Task
from c2fmae.core.scene import SceneBatch
from c2fmae.core.seeding import derive_seed
from c2fmae.eval.classification.config import MixingConfig
from c2fmae.eval.classification.inputs import prepare_classifier_inputs
from c2fmae.eval.classification.mixing import mix_map, mix_targets, pair_samples, sample_mix_params
from c2fmae.models.classifiers import Classifier


@dataclass(frozen=True)
class ClassificationMicroBatch:
    """A part of a batch, ready for the classifier."""

    keys: tuple[str, ...]
    maps: Mapping[str, Tensor]
    targets: Float[Tensor, "sample label"]


@dataclass(frozen=True)
class ClassificationTask(Task[SceneBatch, ClassificationMicroBatch]):
    """Steps of fine-tuning; all that is drawn for a step depends on its number alone, and is the same everywhere."""

    classifier: Classifier
    mixing: MixingConfig
    granularity_dropout: float
    """How often each granularity is left out of a step; one always stays."""
    seed: int
    num_views: int = 1
    """Of each photo in a batch, side by side."""

    def split(
        self, batch: SceneBatch, *, num_micro_batches: int, step: int, progress: float, world: World
    ) -> list[ClassificationMicroBatch]:
        """Mix images and labels, and cut them into parts."""
        del progress
        rng = np.random.default_rng(derive_seed(self.seed, "mix", step))
        maps = prepare_classifier_inputs(self.classifier, batch.to(world.device), self._sample_granularities(rng))
        grid_size = _grid_size(maps)
        mix_params = sample_mix_params(self.mixing, grid_size, rng)
        labels = torch.tensor(require_labels(batch), device=world.device)
        partners = pair_samples(len(batch), self.num_views).to(world.device)
        mixed = {name: mix_map(name, values, mix_params, grid_size, partners) for name, values in maps.items()}
        targets = mix_targets(
            labels, self.classifier.num_labels, lam=mix_params.lam, smoothing=self.mixing.smoothing, partners=partners
        )
        micro_batch_size = len(batch) // num_micro_batches
        return [
            ClassificationMicroBatch(
                batch.keys[first : first + micro_batch_size],
                {name: values[first : first + micro_batch_size] for name, values in mixed.items()},
                targets[first : first + micro_batch_size],
            )
            for first in range(0, len(batch), micro_batch_size)
        ]

    def compute_counts(self, micro_batch: ClassificationMicroBatch) -> dict[str, Tensor]:
        """Return what the loss is a mean over."""
        return {"samples": torch.tensor(len(micro_batch.keys), device=micro_batch.targets.device)}

    def compute_losses(
        self, model: nn.Module, micro_batch: ClassificationMicroBatch, counts: Mapping[str, Tensor]
    ) -> StepLoss:
        """Return the part's share of the cross-entropy; parameters of granularities left out have a gradient of 0."""
        logits = model(micro_batch.maps)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # in fp32 or wider on purpose
        loss = -(micro_batch.targets * logits.log_softmax(dim=1)).sum() / counts["samples"]
        for name, embedding in self.classifier.backbone.embeddings.items():
            if name not in micro_batch.maps:
                loss = loss + sum(0.0 * each.sum() for each in embedding.parameters() if each.requires_grad)
        return StepLoss(loss, {})

    def sample_keys(self, micro_batch: ClassificationMicroBatch) -> Sequence[str]:
        """Return the samples' names."""
        return micro_batch.keys

    def _sample_granularities(self, rng: np.random.Generator) -> tuple[str, ...]:
        """Draw which granularities a step sees."""
        names = self.classifier.backbone.granularities
        noise = rng.random(len(names))
        visible = tuple(name for name, u in zip(names, noise, strict=True) if u >= self.granularity_dropout)
        return visible or (names[int(noise.argmax())],)


def _grid_size(maps: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return in how many cells images are cut: pixels, or where there are id maps, theirs."""
    ids = next((values for name, values in maps.items() if GRANULARITIES.get(name).kind == "ids"), None)
    shape = next(iter(maps.values())).shape if ids is None else ids.shape
    return shape[-2], shape[-1]


def require_labels(batch: SceneBatch) -> list[int]:
    """Return the labels of a batch, all of which have one."""
    for key, label in zip(batch.keys, batch.labels, strict=True):
        if label is None:
            raise UserError(f"{key}: has no label. Leave it out, or label it")
    return [label for label in batch.labels if label is not None]
