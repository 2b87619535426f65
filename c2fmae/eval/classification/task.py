"""Classification as the training loop sees it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.scene import GRANULARITIES, SceneBatch
from c2fmae.core.seeding import seed_of
from c2fmae.eval.classification.inputs import inputs_of
from c2fmae.eval.classification.mixing import MixConfig, draw_mix, mixed_map, neighbours, soft_targets
from c2fmae.models.classifiers import Classifier


@dataclass(frozen=True)
class Part:
    """A part of a batch, ready for the classifier."""

    keys: tuple[str, ...]
    maps: Mapping[str, Tensor]
    targets: Float[Tensor, "sample label"]


@dataclass(frozen=True)
class ClassLoss:
    """What a part adds to the loss."""

    total: Tensor

    @property
    def parts(self) -> dict[str, Tensor]:
        """There is but one."""
        return {}


@dataclass(frozen=True)
class ClassificationTask:
    """Steps of fine-tuning; all that is drawn for a step depends on its number alone, and is the same everywhere."""

    classifier: Classifier
    mixing: MixConfig
    granularity_dropout: float
    """How often each granularity is left out of a step; one always stays."""
    seed: int
    views: int = 1
    """Of each photo in a batch, side by side."""

    def split(self, batch: SceneBatch, *, parts: int, step: int, progress: float, world: World) -> list[Part]:
        """Mix images and labels, and cut them into parts."""
        del progress
        rng = np.random.default_rng(seed_of(self.seed, "mix", step))
        maps = inputs_of(self.classifier, batch.to(world.device), self._shown(rng))
        cells = _cells(maps)
        mix = draw_mix(self.mixing, cells, rng)
        labels = torch.tensor(labels_of(batch), device=world.device)
        whom = neighbours(len(batch), self.views).to(world.device)
        mixed = {name: mixed_map(name, values, mix, cells, whom) for name, values in maps.items()}
        targets = soft_targets(
            labels, self.classifier.num_labels, share=mix.share, smoothing=self.mixing.smoothing, whom=whom
        )
        each = len(batch) // parts
        return [
            Part(
                batch.keys[first : first + each],
                {name: values[first : first + each] for name, values in mixed.items()},
                targets[first : first + each],
            )
            for first in range(0, len(batch), each)
        ]

    def counts(self, part: Part) -> dict[str, Tensor]:
        """Return what the loss is a mean over."""
        return {"samples": torch.tensor(len(part.keys), device=part.targets.device)}

    def summary(self, counts: Mapping[str, int], progress: float) -> dict[str, float]:
        """Say nothing more of a step."""
        del counts, progress
        return {}

    def losses(self, model: nn.Module, part: Part, counts: Mapping[str, Tensor]) -> ClassLoss:
        """Return the part's share of the cross-entropy; parameters of granularities left out have a gradient of 0."""
        logits = model(part.maps)
        error = -(part.targets * logits.float().log_softmax(dim=1)).sum() / counts["samples"]  # in fp32 on purpose
        for name, embedding in self.classifier.backbone.embeddings.items():
            if name not in part.maps:
                error = error + sum(0.0 * each.sum() for each in embedding.parameters() if each.requires_grad)
        return ClassLoss(error)

    def keys(self, part: Part) -> Sequence[str]:
        """Return the samples' names."""
        return part.keys

    def _shown(self, rng: np.random.Generator) -> tuple[str, ...]:
        """Draw which granularities a step sees."""
        names = self.classifier.backbone.granularities
        noise = rng.random(len(names))
        kept = tuple(name for name, u in zip(names, noise, strict=True) if u >= self.granularity_dropout)
        return kept or (names[int(noise.argmax())],)


def _cells(maps: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return in how many cells images are cut: pixels, or where there are id maps, theirs."""
    ids = next((values for name, values in maps.items() if GRANULARITIES.get(name).kind == "ids"), None)
    shape = next(iter(maps.values())).shape if ids is None else ids.shape
    return shape[-2], shape[-1]


def labels_of(batch: SceneBatch) -> list[int]:
    """Return the labels of a batch, all of which have one."""
    for key, label in zip(batch.keys, batch.labels, strict=True):
        if label is None:
            raise UserError(f"{key}: has no label. Leave it out, or label it")
    return [label for label in batch.labels if label is not None]
