"""`eval dense`: how well a linear classifier of frozen patches says which class every place of a photo shows."""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Integer
from torch import Tensor

from c2fmae.core.config import Count
from c2fmae.core.errors import UserError
from c2fmae.core.scene import IGNORE
from c2fmae.core.seeding import seed_of
from c2fmae.eval.datasets import Opened, same_names
from c2fmae.eval.evaluation import EVALUATIONS, Metric, Subject
from c2fmae.eval.probes.batching import hold_out
from c2fmae.eval.probes.bootstrap import REPLICATES, percentile_interval, poisson_weights, replicate_sums
from c2fmae.eval.probes.confusion import confusion, ious, mean_iou, share_right
from c2fmae.eval.probes.extraction import Wanted
from c2fmae.eval.probes.feature_store import Extracted
from c2fmae.eval.probes.linear_heads import Chosen, choose_head
from c2fmae.eval.probes.logistic_regression import LinearProbe
from c2fmae.eval.probes.probe_config import Pair, ProbeConfig
from c2fmae.eval.probes.sweep import SweepConfig, told
from c2fmae.models.backbones import Backbone
from c2fmae.models.patches import label_stride, patchify

_AT_ONCE = 64  # photos whose places are classified together


@EVALUATIONS.register("dense")
class DenseConfig(SweepConfig, ProbeConfig):
    """A linear classifier of frozen patches, its settings chosen on a fifth of the training photos: mIoU."""

    max_patches: Count = 500_000
    """So many training patches at most, drawn evenly from the photos."""

    def wanted(self, backbone: Backbone) -> Wanted:
        """Return what is to be known of every scene."""
        return Wanted(patches=self.layers_of(backbone), has_maps=True, precision=self.precision)

    def needs(self) -> tuple[str, ...]:
        """Return the granularities that scenes have to have."""
        return ("rgb", "semantic")

    def check(self, opened: tuple[Opened, Opened]) -> None:
        """Refuse classes that are not the same, or have no names."""
        if not same_names(opened, "class_names"):
            raise UserError(f"train: {opened[0].name} does not name its classes. Give it a dataset.json")

    def protocol(self, subject: Subject) -> str:
        """Say what is done."""
        number = len(self.lrs) * len(self.weight_decays) * len(self.layers_of(subject.backbone))
        stride = label_stride(subject.backbone.patch)
        return (
            f"{self.told(subject)} A linear classifier of standardised features of patches, {self.told_of_fit()}; what "
            f"is right of a patch is how much of each class its cells hold, one cell being {stride}×{stride} pixels. "
            f"Up to {self.max_patches:,} training patches. Of {number} settings (learning rate × weight decay × layer, "
            "fitted in one pass) the best on a fifth of the training photos is fitted again to all of them; the test "
            "photos have no part in the choice. Its scores are brought to the cells bilinearly, and all labelled cells "
            "of all test photos counted at once: mIoU is the mean over classes that are there or were found. "
            f"Intervals: {REPLICATES} bootstrap samples of the test photos."
        )

    def run(self, subject: Subject) -> Iterator[Metric]:
        """Fit all settings at once, in one process for all, and count what the best finds."""
        pair, names = self.features(subject), self.open(subject)[0].scenes.info.class_names
        count = pair.count
        yield pair.told_overlap()
        best = self._choose(pair, subject.backbone, len(names)) if subject.world.is_first else None
        chosen: Chosen = subject.world.share(best)
        total, replicates = self._count(subject, pair.test, chosen, len(names))
        interval = percentile_interval(100 * mean_iou(replicates))
        yield Metric("mIoU", 100 * mean_iou(total).item(), count, interval, told(chosen))
        interval = percentile_interval(100 * share_right(replicates))
        yield Metric("cells right", 100 * share_right(total).item(), count, interval)
        for name, iou in zip(names, ious(total).tolist(), strict=True):
            if not math.isnan(iou):
                yield Metric(f"IoU, {name}", 100 * iou, count)

    def _choose(self, pair: Pair, backbone: Backbone, num_classes: int) -> Chosen:
        features, counts, photos = self._training_rows(pair.train, backbone, num_classes)
        rows = torch.arange(len(counts))
        _, held_out_photos = hold_out(photos.unique(), seed=self.seed)
        is_held_out = torch.isin(photos, held_out_photos)
        return choose_head(
            features,
            counts,
            self.sweep([*features]),
            rows=rows[~is_held_out],
            held_out=rows[is_held_out],
            num_labels=num_classes,
            epochs=self.epochs_of(len(rows)),
            batch_size=self.head_batch_size,
            seed=seed_of(self.seed, "heads"),
        )

    def _training_rows(
        self, train: Extracted, backbone: Backbone, num_classes: int
    ) -> tuple[dict[str, Tensor], Float[Tensor, "row label"], Int[Tensor, " row"]]:
        """Return features of patches by layer, how much of each class they hold, and which photo they are of."""
        side, numbers = backbone.patch // label_stride(backbone.patch), range(len(train.chunks))
        is_labelled = torch.cat([(patchify(train.block("semantic", n), side) != IGNORE).any(dim=2) for n in numbers])
        each, rows = is_labelled.shape[1], is_labelled.flatten().nonzero()[:, 0]
        if len(rows) > self.max_patches:
            noise = torch.rand(len(rows), generator=torch.Generator().manual_seed(seed_of(self.seed, "patches")))
            rows = rows[noise.argsort()[: self.max_patches].sort().values]
        chunk = train.length * each

        def gathered(make: Callable[[int], Tensor]) -> Tensor:
            return torch.cat([make(n).flatten(0, 1)[rows[rows // chunk == n] - n * chunk] for n in numbers])

        counts = gathered(lambda n: class_counts(train.block("semantic", n), side, num_classes))
        names = {f"layer {depth}": f"patches {depth}" for depth in self.layers_of(backbone)}
        features = {name: gathered(lambda n, of=of: train.block(of, n)) for name, of in names.items()}  # type: ignore[misc]
        return features, counts, rows // each

    def _count(
        self, subject: Subject, test: Extracted, chosen: Chosen, num_classes: int
    ) -> tuple[Tensor, Float[Tensor, "replicate truth found"]]:
        """Return what was found where which class is, over all photos and in each bootstrap sample."""
        world, layer = subject.world, chosen.setting.column.removeprefix("layer ")
        size = (num_classes, num_classes)
        total, replicates = torch.zeros(size, dtype=torch.int64), torch.zeros(REPLICATES, *size, dtype=torch.float64)
        for number in range(world.rank, len(test.chunks), world.size):
            patches, ids = test.block(f"patches {layer}", number), test.block("semantic", number)
            for first in range(0, len(ids), _AT_ONCE):
                truth = ids[first : first + _AT_ONCE]
                found = classify(chosen.probe, patches[first : first + _AT_ONCE], (ids.shape[1], ids.shape[2]))
                counts = confusion(found, truth, num_classes)
                photos = number * test.length + first + torch.arange(len(truth))
                total += counts.sum(dim=0)
                replicates += replicate_sums(counts, poisson_weights(photos, seed=self.seed))
        return world.add(total.to(world.device)).cpu(), world.add(replicates.to(world.device)).cpu()


def classify(
    probe: LinearProbe, patches: Float[Tensor, "photo patch dim"], size: tuple[int, int]
) -> Int[Tensor, "photo row column"]:
    """Return the class of every cell of a map of that size: patches' scores are brought to it bilinearly."""
    rows = round(math.sqrt(patches.shape[1] * size[0] / size[1]))
    scores = probe.logits(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
    grid = scores.transpose(1, 2).unflatten(2, (rows, -1))
    return F.interpolate(grid, size=size, mode="bilinear", align_corners=False).argmax(dim=1)


def class_counts(
    ids: Integer[Tensor, "photo row column"], side: int, num_classes: int
) -> Float[Tensor, "photo patch label"]:
    """Return how many cells of each class a patch of `side` × `side` cells holds; not those that nobody labelled.

    >>> class_counts(torch.tensor([[[0, 1, 1, 1], [255, 0, 1, 1]]]), 2, 2).tolist()
    [[[2.0, 1.0], [0.0, 4.0]]]
    """
    cells = patchify(ids, side).long()
    is_labelled = cells != IGNORE
    counts = torch.zeros(*cells.shape[:2], num_classes)
    return counts.scatter_add(2, cells.where(is_labelled, 0), is_labelled.float())
