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
from c2fmae.data.prefetch import made_ahead
from c2fmae.eval.classification.inputs import inputs_of
from c2fmae.eval.classification.task import labels_of
from c2fmae.models.classifiers import Classifier


@dataclass(frozen=True)
class Accuracy:
    """What a classifier said of labelled scenes."""

    confusion: Int64[Tensor, "truth answer"]
    """How many scenes of a label were given which."""
    in_five: int
    """Of how many the label was among the first five."""
    loss: float
    """The mean cross-entropy."""
    tokens: int
    """How many tokens of patches it saw of each."""

    @property
    def count(self) -> int:
        """How many scenes there were."""
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        """The share whose label came first."""
        return int(self.confusion.diagonal().sum()) / self.count

    @property
    def top5(self) -> float:
        """The share whose label was among the first five."""
        return self.in_five / self.count

    def of_each(self) -> Float64[Tensor, " label"]:
        """Return the share of each label's scenes that were given it; NaN for a label without scenes."""
        return self.confusion.diagonal().double() / self.confusion.sum(dim=1)

    def mistaken_for(self) -> list[tuple[int, int]]:
        """Return for each label the one that it was mistaken for most, and how often."""
        wrong = self.confusion - torch.diag(self.confusion.diagonal())
        counts, answers = wrong.max(dim=1)
        return list(zip(answers.tolist(), counts.tolist(), strict=True))


@dataclass(frozen=True)
class Trial:
    """Scenes on which classifiers are tried, and how."""

    scenes: Scenes
    view: CentralView
    world: World
    batch_size: int
    workers: int
    precision: torch.dtype

    @torch.inference_mode()
    def of(self, classifier: Classifier, names: Sequence[str], weights: Mapping[str, Tensor] | None = None) -> Accuracy:
        """Try a classifier with some of its granularities; with `weights` in place of its own, where they are given.

        Each process takes whole batches, so that what is added up is the same for any number of them.
        """
        size, device = classifier.num_labels, self.world.device
        is_training = classifier.training
        classifier.eval()
        encoder, seen = classifier.backbone.encoder, set[int]()
        hook = encoder.register_forward_hook(lambda _, __, tokens: seen.add(tokens.shape[1] - encoder.num_prefix))
        confusion = torch.zeros(size * size, dtype=torch.long, device=device)
        others = torch.zeros(2, dtype=torch.float64, device=device)
        for batch in self._batches():
            truth = torch.tensor(labels_of(batch), device=device)
            maps = inputs_of(classifier, batch.to(device), names)
            with torch.autocast(device.type, self.precision, enabled=self.precision != torch.float32):
                logits = functional_call(classifier, dict(weights), (maps,)) if weights else classifier(maps)
            logits = logits.float()
            confusion += (truth * size + logits.argmax(dim=1)).bincount(minlength=size * size)
            in_five = (logits.topk(min(5, size), dim=1).indices == truth.unsqueeze(1)).sum()
            loss = torch.nn.functional.cross_entropy(logits, truth, reduction="sum")
            others += torch.stack([in_five.double(), loss.double()])
        hook.remove()
        classifier.train(is_training)
        confusion, others = self.world.add(confusion).cpu(), self.world.add(others).cpu()
        tokens = self.world.share(max(seen, default=0))
        return Accuracy(confusion.view(size, size), int(others[0]), others[1].item() / len(self.scenes), tokens)

    def _batches(self) -> Iterator[SceneBatch]:
        """Return this process's batches."""
        starts = range(0, len(self.scenes), self.batch_size)
        mine = [
            range(first, min(first + self.batch_size, len(self.scenes)))
            for first in starts[self.world.rank :: self.world.size]
        ]
        make = _Batches(self.scenes, self.view, mine)
        return made_ahead(make, len(mine), workers=self.workers, pin=self.world.device.type == "cuda")


@dataclass(frozen=True)
class _Batches:
    """Batches by number."""

    scenes: Scenes
    view: CentralView
    rows: Sequence[range]

    def __call__(self, number: int) -> SceneBatch:
        return SceneBatch.stack([self.view(self.scenes[row]) for row in self.rows[number]])
