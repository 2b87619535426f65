"""Probes of frozen features: settings, protocols and the features that they need."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from c2fmae.core.config import Fraction, PositiveInt, WorkerCount
from c2fmae.core.errors import UserError
from c2fmae.core.specs import Pooling
from c2fmae.core.text import format_count
from c2fmae.eval.data_config import TrainTestConfig
from c2fmae.eval.evaluation import EVALUATIONS, Evaluation, ModelUnderTest, Precision
from c2fmae.eval.metrics import Metric

if TYPE_CHECKING:
    import c2fmae.eval.datasets
    import c2fmae.models.backbones

LearningRate = Annotated[float, Field(gt=0)]
WeightDecay = Annotated[float, Field(ge=0)]

FEATURES_DIR = "features"
"""Directory of features below a model's output directory."""

QUICK_SWEEP: Mapping[str, Any] = MappingProxyType({"lrs": (0.03, 0.1, 0.3, 1.0), "weight_decays": (1e-4, 1e-2)})
"""Settings of a linear probe to choose from when it is to be fitted in seconds."""

_MIN_STEPS, _MIN_EPOCHS = 3000, 10  # of a fit


class FeatureColumn(NamedTuple):
    """Features of one block, pooled in one way."""

    depth: int
    pool: Pooling

    def __str__(self) -> str:
        return f"layer {self.depth}, {self.pool}"


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """The features that are extracted from every scene."""

    columns: tuple[FeatureColumn, ...] = ()
    patch_depths: tuple[int, ...] = ()
    """Blocks after which the features of all patches are stored."""
    has_maps: bool = False
    """Whether semantic maps are stored too."""
    precision: Precision = "fp32"

    def __str__(self) -> str:
        return ", ".join([*map(str, self.columns), *(f"patches of layer {depth}" for depth in self.patch_depths)])


class ProbeConfig(TrainTestConfig, Evaluation):
    """A probe of the frozen features of images."""

    cache_name: ClassVar[str | None] = FEATURES_DIR
    neutral_fields: ClassVar[frozenset[str]] = frozenset({"workers", "limit"})
    limit_field: ClassVar[str | None] = "limit"

    layers: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    """Blocks whose output is probed, counted from 1. By default, the last."""
    seed: int = 0
    batch_size: PositiveInt = 64
    """Images per batch of the encoder."""
    workers: WorkerCount = None
    """Processes that load images; by default, one for each core, up to 16."""
    precision: Precision = "fp32"

    def resolve_layers(self, backbone: "c2fmae.models.backbones.Backbone") -> tuple[int, ...]:
        """Return the blocks to probe."""
        for layer in self.layers or ():
            if layer > backbone.depth:
                raise UserError(f"layers: expected blocks from 1 to {backbone.depth}, got {layer}")
        return self.layers or (backbone.depth,)

    def feature_spec(self, backbone: "c2fmae.models.backbones.Backbone") -> FeatureSpec:
        """Return the features that the probe needs."""
        raise NotImplementedError

    def required_granularities(self) -> tuple[str, ...]:
        """Return the granularities that scenes must have."""
        return ("rgb",)

    def check_sets(self, sets: "tuple[c2fmae.eval.datasets.OpenedSet, c2fmae.eval.datasets.OpenedSet]") -> None:
        """Raise a `UserError` for sets that do not match, before features are computed."""

    def identify_inputs(self, model: ModelUnderTest) -> dict[str, str]:
        """Return digests of the two sets, and how positions are computed for other image sizes."""
        from c2fmae.eval.probes.train_test import open_sets

        sets = dict(zip(("train", "test"), open_sets(self, model), strict=True))
        positions = model.identify_positions(self.resolve_image_size(model.backbone))
        return {split: opened.identity for split, opened in sets.items()} | positions

    def describe_setup(self, model: ModelUnderTest) -> str:
        """Return the part of the protocol that all probes share."""
        from c2fmae.eval.probes.train_test import open_sets

        backbone, (train, test) = model.backbone, open_sets(self, model)
        height, width = self.resolve_image_size(backbone)
        crop = f"the central {self.crop:g} of each image" if self.crop < 1 else "the largest central crop of each image"
        norm = "normed after the pooling of the last layer" if backbone.spec.has_fc_norm else "the last layer normed"
        return (
            f"Frozen features of images alone ({self.feature_spec(backbone)}; {norm}), in evaluation mode, "
            f"{self.precision}; {crop} at {height}×{width}. Fitted to {train}, tested on {test}."
        )


class LabelProbeConfig(ProbeConfig):
    """A probe that predicts the label of an image."""

    pools: Annotated[tuple[Pooling, ...], Field(min_length=1)] | None = None
    """How an image's tokens are pooled into one vector. By default, as the backbone does."""
    fractions: Annotated[tuple[Fraction, ...], Field(min_length=1)] = (1.0,)
    """Fractions of each class's labels that the probe is fitted to, rounded up."""
    seeds: PositiveInt = 1
    """Number of random draws of each fraction. There is one draw of all labels."""

    def feature_columns(self, backbone: "c2fmae.models.backbones.Backbone") -> tuple[FeatureColumn, ...]:
        """Return the pooled features to probe."""
        pools = self.pools or (backbone.spec.pool,)
        return tuple(FeatureColumn(layer, pool) for layer in self.resolve_layers(backbone) for pool in pools)

    def feature_spec(self, backbone: "c2fmae.models.backbones.Backbone") -> FeatureSpec:
        """Return the features that the probe needs."""
        return FeatureSpec(columns=self.feature_columns(backbone), precision=self.precision)

    def check_sets(self, sets: "tuple[c2fmae.eval.datasets.OpenedSet, c2fmae.eval.datasets.OpenedSet]") -> None:
        """Raise a `UserError` for sets without labels or with different ones."""
        from c2fmae.eval.datasets import check_same_names

        check_same_names(sets, "label_names")
        for split, opened in zip(("train", "test"), sets, strict=True):
            if opened.scenes[0].label is None:
                raise UserError(
                    f"{split}: {opened.name} has no labels. Use a labelled set, or `eval dense` for semantic maps"
                )

    def describe_scores(self) -> str:
        """Return the part of the protocol about the metrics."""
        draws = ""
        if self.fractions != (1.0,):
            seeds = format_count(self.seeds, "seed")
            draws = f"Fractions of the labels are of each class, rounded up, drawn with {seeds}. "
        return (
            f"{draws}Accuracy over all test images, in percent, with Wilson's 95 % interval; of several draws, the "
            "mean and the standard deviation."
        )


class SweepConfig(ProbeConfig):
    """A grid of linear probes, fitted to the same batches."""

    lrs: Annotated[tuple[LearningRate, ...], Field(min_length=1)] = (0.01, 0.03, 0.1, 0.3, 1.0)
    """Learning rates to choose from."""
    weight_decays: Annotated[tuple[WeightDecay, ...], Field(min_length=1)] = (0.0, 1e-4, 1e-3, 1e-2)
    """Weight decays to choose from."""
    epochs: PositiveInt | None = None
    """By default, enough for 3,000 steps, and at least 10."""
    head_batch_size: PositiveInt = 256
    """Rows per step of the probe."""

    def resolve_epochs(self, num_rows: int) -> int:
        """Return the number of epochs for this number of rows."""
        return self.epochs or max(_MIN_EPOCHS, ceil(_MIN_STEPS / ceil(num_rows / self.head_batch_size)))

    def describe_fit(self) -> str:
        """Return the part of the protocol about fitting."""
        length = (
            format_count(self.epochs, "epoch")
            if self.epochs
            else f"{_MIN_STEPS:,} steps or {_MIN_EPOCHS} epochs, whichever is more,"
        )
        return (
            f"fitted with cross-entropy by gradient descent with momentum 0.9 for about {length} in batches of at "
            f"most {self.head_batch_size}, with a cosine schedule"
        )


_SWEEP_FIELDS = SweepConfig.model_fields.keys() - ProbeConfig.model_fields.keys()


@EVALUATIONS.register("knn")
class KnnEvaluation(LabelProbeConfig):
    """Classify images by the nearest neighbours of their frozen features."""

    ks: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 5, 10, 20, 50)
    """Numbers of neighbours. Those above the number of training images are omitted."""
    temperature: Annotated[float, Field(gt=0)] = 0.07
    """Temperature of the weighted vote: each neighbour has the weight exp(cosine / temperature)."""

    def run(self, model: ModelUnderTest) -> Iterator[Metric]:
        """Yield the accuracy for each number of neighbours and type of vote."""
        from c2fmae.eval.probes.knn import run_knn

        return run_knn(self, model)

    def describe_protocol(self, model: ModelUnderTest) -> str:
        """Return the protocol."""
        return (
            f"{self.describe_setup(model)} k nearest neighbours by cosine, found by exact search among all training "
            f"images whose label is used; votes weighted by exp(cosine / {self.temperature:g}), and plain ones. "
            f"{self.describe_scores()}"
        )


@EVALUATIONS.register("linear")
class LinearProbeEvaluation(SweepConfig, LabelProbeConfig):
    """Classify images by a linear classifier of their frozen features."""

    variant: Literal["sweep", "mae"] = "sweep"
    """`sweep` chooses settings on a fifth of the training images. `mae` is MAE's protocol with fixed settings (batch
    norm, LARS, 90 epochs), for hundreds of thousands of images."""

    @model_validator(mode="after")
    def _check_variant(self) -> "LinearProbeEvaluation":
        if self.variant == "mae":
            if unused := sorted(self.model_fields_set & _SWEEP_FIELDS):
                raise UserError(f"{', '.join(unused)}: are fixed in MAE's protocol. Leave them out")
            if len(self.layers or ()) > 1 or len(self.pools or ()) > 1:
                raise UserError("variant: MAE's protocol uses one layer and one pooling. Choose one of each")
        return self

    def run(self, model: ModelUnderTest) -> Iterator[Metric]:
        """Yield the accuracy of the probe for each fraction of the labels."""
        from c2fmae.eval.probes.linear import run_linear_probe

        return run_linear_probe(self, model)

    def describe_protocol(self, model: ModelUnderTest) -> str:
        """Return the protocol."""
        if self.variant == "mae":
            from c2fmae.eval.probes.lars import BASE_LR

            return (
                f"{self.describe_setup(model)} MAE's linear probe: batch norm without scale and shift, LARS with "
                f"momentum 0.9, learning rate {BASE_LR:g} × batch/256, 10 of 90 epochs of warm-up, a cosine schedule, "
                "no weight decay, batches of at most 16,384; unlike MAE's, without augmentation. "
                f"{self.describe_scores()}"
            )
        number = len(self.lrs) * len(self.weight_decays) * len(self.feature_columns(model.backbone))
        return (
            f"{self.describe_setup(model)} A linear classifier of standardised features, {self.describe_fit()}. "
            f"Of {format_count(number, 'setting')} (learning rate × weight decay × features, fitted in one pass) "
            "the best on a fifth of the training images is fitted again to all of them; test images have no part in "
            "the choice. "
            f"{self.describe_scores()}"
        )


@EVALUATIONS.register("attentive")
class AttentiveProbeEvaluation(LabelProbeConfig):
    """Classify images by a classifier that attends to their frozen patches."""

    num_queries: PositiveInt = 32
    """Number of learned queries."""
    narrowing: PositiveInt = 1
    """Width of a token divided by the width of the pooled vector."""
    lr: LearningRate = 0.001
    weight_decay: WeightDecay = 0.01
    epochs: PositiveInt = 30
    head_batch_size: Annotated[int, Field(ge=4)] = 256
    """Maximum number of images per step of the probe. Its batch norm needs several."""

    @model_validator(mode="after")
    def _check_features(self) -> "AttentiveProbeEvaluation":
        if self.pools or len(self.layers or ()) > 1:
            raise UserError("pools, layers: attentive probes pool the patches of one layer themselves. Use one layer")
        return self

    def feature_spec(self, backbone: "c2fmae.models.backbones.Backbone") -> FeatureSpec:
        """Return the features that the probe needs."""
        return FeatureSpec(patch_depths=self.resolve_layers(backbone), precision=self.precision)

    def run(self, model: ModelUnderTest) -> Iterator[Metric]:
        """Yield the accuracy of the probe for each fraction of the labels."""
        from c2fmae.eval.probes.attentive import run_attentive_probe

        return run_attentive_probe(self, model)

    def describe_protocol(self, model: ModelUnderTest) -> str:
        """Return the protocol."""
        return (
            f"{self.describe_setup(model)} Efficient probing: {self.num_queries} learned queries attend to the "
            "patches, which are their own keys; each reads its group of a linear map of them, and a linear classifier "
            "predicts the label after batch norm without scale and shift. AdamW, learning rate "
            f"{self.lr:g} after a tenth of the steps, then a cosine schedule, weight decay {self.weight_decay:g}, "
            f"{format_count(self.epochs, 'epoch')} in batches of at most {self.head_batch_size}; nothing is chosen. "
            f"{self.describe_scores()}"
        )


@EVALUATIONS.register("dense")
class DenseProbeEvaluation(SweepConfig):
    """Segment images by a linear classifier of their frozen patches: mIoU."""

    max_patches: PositiveInt = 500_000
    """Maximum number of training patches, drawn evenly from the images."""

    def feature_spec(self, backbone: "c2fmae.models.backbones.Backbone") -> FeatureSpec:
        """Return the features that the probe needs."""
        return FeatureSpec(patch_depths=self.resolve_layers(backbone), has_maps=True, precision=self.precision)

    def required_granularities(self) -> tuple[str, ...]:
        """Return the granularities that scenes must have."""
        return ("rgb", "semantic")

    def check_sets(self, sets: "tuple[c2fmae.eval.datasets.OpenedSet, c2fmae.eval.datasets.OpenedSet]") -> None:
        """Raise a `UserError` for sets without class names or with different ones."""
        from c2fmae.eval.datasets import check_same_names

        if not check_same_names(sets, "class_names"):
            raise UserError(f"train: {sets[0].name} does not name its classes. Add a dataset.json that does")

    def run(self, model: ModelUnderTest) -> Iterator[Metric]:
        """Yield mIoU, accuracy over cells, and the IoU of each class."""
        from c2fmae.eval.probes.dense import run_dense_probe

        return run_dense_probe(self, model)

    def describe_protocol(self, model: ModelUnderTest) -> str:
        """Return the protocol."""
        from c2fmae.eval.intervals import NUM_REPLICATES
        from c2fmae.models.patches import label_stride

        number = len(self.lrs) * len(self.weight_decays) * len(self.resolve_layers(model.backbone))
        stride = label_stride(model.backbone.patch)
        return (
            f"{self.describe_setup(model)} A linear classifier of standardised features of patches, "
            f"{self.describe_fit()}; the target of a patch is the fraction of each class among its cells of "
            f"{stride}×{stride} pixels. Up to {self.max_patches:,} training patches. Of "
            f"{format_count(number, 'setting')} (learning rate × weight decay × layer, fitted in one pass) the best on "
            "a fifth of the training images is fitted again to all of them; test images have no part in the choice. "
            "Its scores are interpolated bilinearly to "
            "the cells, and all labelled cells of all test images are counted together: mIoU is the mean over classes "
            f"that occur or are predicted. Intervals: {NUM_REPLICATES} bootstrap samples of the test images."
        )
