"""Accuracy of a classifier, overall and per class; the same for any number of processes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from torch.func import functional_call

from c2fmae.core.distributed import World
from c2fmae.core.scene import SceneBatch
from c2fmae.data import CentralView, Scenes
from c2fmae.eval.classification.task import prepare_classifier_inputs, require_labels
from c2fmae.eval.engine import BatchingConfig, BatchReader, iterate_batches, sum_outputs
from c2fmae.models.classifiers import Classifier


@dataclass(frozen=True)
class ClassificationScores:
    """Scores of a classifier on labelled scenes."""

    confusion: Int64[Tensor, "truth predicted"]
    """The number of scenes by true and predicted label."""
    num_top5_correct: int
    """The number of scenes whose label is among the five highest logits."""
    loss: float
    """The mean cross-entropy."""
    num_tokens: int
    """The number of patch tokens of an image."""

    @property
    def num_images(self) -> int:
        """The number of scenes."""
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        """The fraction of scenes whose label has the highest logit."""
        return int(self.confusion.diagonal().sum()) / self.num_images

    @property
    def top5(self) -> float:
        """The fraction of scenes whose label is among the five highest logits."""
        return self.num_top5_correct / self.num_images

    def per_class_accuracy(self) -> Float64[Tensor, " label"]:
        """Return the accuracy on the scenes of each label; NaN for a label without scenes."""
        return self.confusion.diagonal().double() / self.confusion.sum(dim=1)

    def most_confused_labels(self) -> list[tuple[int, int]]:
        """Return, for each label, the wrong label that is predicted most often, and its count."""
        wrong = self.confusion - torch.diag(self.confusion.diagonal())
        counts, predicted = wrong.max(dim=1)
        return list(zip(predicted.tolist(), counts.tolist(), strict=True))


@dataclass(frozen=True)
class ClassifierEvaluator:
    """Evaluates classifiers on a set of scenes."""

    scenes: Scenes
    view: CentralView
    world: World
    batching: BatchingConfig
    precision: torch.dtype

    @torch.inference_mode()
    def evaluate(
        self, classifier: Classifier, granularities: Sequence[str], weights: Mapping[str, Tensor] | None = None
    ) -> ClassificationScores:
        """Return the scores of a classifier with some of its granularities, optionally with other `weights`.

        Each process computes whole batches, so the summands are the same for any number of processes.
        """
        num_labels, device = classifier.num_labels, self.world.device
        is_training = classifier.training
        classifier.eval()
        encoder, token_counts = classifier.backbone.encoder, set[int]()
        hook = encoder.register_forward_hook(
            lambda _, __, tokens: token_counts.add(tokens.shape[1] - encoder.num_prefix_tokens)
        )

        def score(batch: SceneBatch) -> dict[str, Tensor]:
            truth = torch.tensor(require_labels(batch), device=device)
            maps = prepare_classifier_inputs(classifier, batch.to(device), granularities)
            with torch.autocast(device.type, self.precision, enabled=self.precision != torch.float32):
                logits = functional_call(classifier, dict(weights), (maps,)) if weights else classifier(maps)
            logits = logits.float()
            is_in_top5 = logits.topk(min(5, num_labels), dim=1).indices == truth.unsqueeze(1)
            return {
                "confusion": (truth * num_labels + logits.argmax(dim=1)).bincount(minlength=num_labels * num_labels),
                "num_top5_correct": is_in_top5.sum(),
                "loss": torch.nn.functional.cross_entropy(logits, truth, reduction="sum").double(),
            }

        batches = iterate_batches(
            BatchReader(self.scenes, self.view),
            self.world.rank_chunks(len(self.scenes), self.batching.batch_size),
            self.world,
            self.batching,
            show_progress=False,  # training has a progress display
        )
        sums = sum_outputs((score(batch) for _, batch in batches), self.world)
        hook.remove()
        classifier.train(is_training)
        return ClassificationScores(
            sums["confusion"].view(num_labels, num_labels),
            int(sums["num_top5_correct"]),
            sums["loss"].item() / len(self.scenes),
            self.world.broadcast_object(max(token_counts, default=0)),
        )
