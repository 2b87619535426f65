"""How often a classifier is right, class by class; the same for any number of processes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from torch.func import functional_call

from c2fmae.core.distributed import World
from c2fmae.core.scene import SceneBatch
from c2fmae.data import CentralView, Scenes
from c2fmae.data.prefetch import prefetch
from c2fmae.eval.classification.inputs import prepare_classifier_inputs
from c2fmae.eval.classification.task import require_labels
from c2fmae.models.classifiers import Classifier


@dataclass(frozen=True)
class ClassificationScores:
    """What a classifier said of labelled scenes."""

    confusion: Int64[Tensor, "truth answer"]
    """How many scenes of a label were given which."""
    num_top5_correct: int
    """Of how many the label was among the first five."""
    loss: float
    """The mean cross-entropy."""
    num_tokens: int
    """How many tokens of patches it saw of each."""

    @property
    def num_images(self) -> int:
        """How many scenes there were."""
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        """The share whose label came first."""
        return int(self.confusion.diagonal().sum()) / self.num_images

    @property
    def top5(self) -> float:
        """The share whose label was among the first five."""
        return self.num_top5_correct / self.num_images

    def per_class_accuracy(self) -> Float64[Tensor, " label"]:
        """Return the share of each label's scenes that were given it; NaN for a label without scenes."""
        return self.confusion.diagonal().double() / self.confusion.sum(dim=1)

    def most_confused_labels(self) -> list[tuple[int, int]]:
        """Return for each label the one that it was mistaken for most, and how often."""
        wrong = self.confusion - torch.diag(self.confusion.diagonal())
        counts, answers = wrong.max(dim=1)
        return list(zip(answers.tolist(), counts.tolist(), strict=True))


@dataclass(frozen=True)
class ClassifierEvaluator:
    """Scenes on which classifiers are tried, and how."""

    scenes: Scenes
    view: CentralView
    world: World
    batch_size: int
    num_workers: int
    precision: torch.dtype

    @torch.inference_mode()
    def evaluate(
        self, classifier: Classifier, granularities: Sequence[str], weights: Mapping[str, Tensor] | None = None
    ) -> ClassificationScores:
        """Try a classifier with some of its granularities; with `weights` in place of its own, where they are given.

        Each process takes whole batches, so that what is added up is the same for any number of them.
        """
        num_labels, device = classifier.num_labels, self.world.device
        is_training = classifier.training
        classifier.eval()
        encoder, token_counts = classifier.backbone.encoder, set[int]()
        hook = encoder.register_forward_hook(
            lambda _, __, tokens: token_counts.add(tokens.shape[1] - encoder.num_prefix_tokens)
        )
        confusion = torch.zeros(num_labels * num_labels, dtype=torch.long, device=device)
        sums = torch.zeros(2, dtype=torch.float64, device=device)
        for batch in self._load_local_batches():
            truth = torch.tensor(require_labels(batch), device=device)
            maps = prepare_classifier_inputs(classifier, batch.to(device), granularities)
            with torch.autocast(device.type, self.precision, enabled=self.precision != torch.float32):
                logits = functional_call(classifier, dict(weights), (maps,)) if weights else classifier(maps)
            logits = logits.float()
            confusion += (truth * num_labels + logits.argmax(dim=1)).bincount(minlength=num_labels * num_labels)
            num_top5_correct = (logits.topk(min(5, num_labels), dim=1).indices == truth.unsqueeze(1)).sum()
            loss = torch.nn.functional.cross_entropy(logits, truth, reduction="sum")
            sums += torch.stack([num_top5_correct.double(), loss.double()])
        hook.remove()
        classifier.train(is_training)
        confusion, sums = self.world.all_reduce(confusion).cpu(), self.world.all_reduce(sums).cpu()
        num_tokens = self.world.broadcast_object(max(token_counts, default=0))
        return ClassificationScores(
            confusion.view(num_labels, num_labels), int(sums[0]), sums[1].item() / len(self.scenes), num_tokens
        )

    def _load_local_batches(self) -> Iterator[SceneBatch]:
        """Return this process's batches."""
        starts = range(0, len(self.scenes), self.batch_size)
        local_rows = [
            range(first, min(first + self.batch_size, len(self.scenes)))
            for first in starts[self.world.rank :: self.world.size]
        ]
        make_batch = _LabelledBatches(self.scenes, self.view, local_rows)
        return prefetch(
            make_batch, len(local_rows), num_workers=self.num_workers, pin_memory=self.world.device.type == "cuda"
        )


@dataclass(frozen=True)
class _LabelledBatches:
    """Batches by number."""

    scenes: Scenes
    view: CentralView
    rows: Sequence[range]

    def __call__(self, number: int) -> SceneBatch:
        return SceneBatch.stack([self.view(self.scenes[row]) for row in self.rows[number]])
