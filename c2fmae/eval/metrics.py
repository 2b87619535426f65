"""Metrics of evaluations: a key, tags such as the layer, and one table of display names and units."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Annotated, Any, NamedTuple

from pydantic import ConfigDict, Field

from c2fmae.core.config import Config

TagValue = str | int | float
MetricIdentity = tuple[str, tuple[tuple[str, TagValue], ...]]


class MetricInfo(NamedTuple):
    """How a metric is shown."""

    display_name: str
    unit: str = ""
    limits: tuple[float, float] = (-inf, inf)
    """The range of possible values, to which intervals are clipped."""
    is_headline: bool = False
    """Whether it is quoted where there is no room for all metrics."""


def _percentage(display_name: str, *, is_headline: bool = False) -> MetricInfo:
    """Return the info of a part of a whole, in percent."""
    return MetricInfo(display_name, "%", (0.0, 100.0), is_headline)


METRIC_INFO: dict[str, MetricInfo] = {
    "accuracy_drop": MetricInfo("drop from clean images", "points"),
    "activation_bytes": MetricInfo("activations stored for the backward pass, per image", "bytes"),
    "ap": _percentage("AP", is_headline=True),
    "ap50": _percentage("AP50"),
    "ap75": _percentage("AP75"),
    "ap_large": _percentage("AP, large objects"),
    "ap_medium": _percentage("AP, medium objects"),
    "ap_small": _percentage("AP, small objects"),
    "ar1": _percentage("AR, 1 detection of a class"),
    "ar10": _percentage("AR, 10 detections of a class"),
    "ar100": _percentage("AR, 100 detections of a class"),
    "ar_large": _percentage("AR, large objects"),
    "ar_medium": _percentage("AR, medium objects"),
    "ar_small": _percentage("AR, small objects"),
    "attention_distance": MetricInfo("attention distance in patches", "patches", (0.0, inf)),
    "attention_distance_pixels": MetricInfo("attention distance in pixels", "pixels", (0.0, inf)),
    "attention_mutual_information": _percentage("mutual information of query and key"),
    "attention_on_objects": _percentage("attention on objects"),
    "attention_on_objects_chance": _percentage("attention on objects by chance"),
    "attention_on_objects_ratio": MetricInfo("attention on objects, relative to chance", limits=(0.0, inf)),
    "average_best_overlap": _percentage("average best overlap"),
    "best_ap": _percentage("best AP"),
    "best_mean_iou": _percentage("best mIoU"),
    "best_top1": _percentage("best top-1"),
    "boundary_f": _percentage("boundary F"),
    "boundary_precision": _percentage("boundary precision"),
    "boundary_recall": _percentage("boundary recall"),
    "calibration_error": _percentage("calibration error"),
    "cell_accuracy": _percentage("accuracy over cells"),
    "clean_top1": _percentage("top-1 on clean images of the same classes"),
    "covering": _percentage("covering"),
    "effective_robustness": MetricInfo("effective robustness", "points"),
    "flops": MetricInfo("operations per image", "FLOP"),
    "forward_bytes": MetricInfo("peak memory of a forward pass", "bytes"),
    "image_rank": MetricInfo("effective rank of pooled features"),
    "image_top_variance": _percentage("variance along the first direction, pooled features"),
    "images_left_out": MetricInfo("images left out"),
    "images_per_second": MetricInfo("speed", "images/s"),
    "iou": _percentage("IoU"),
    "loss": MetricInfo("loss"),
    "mce": MetricInfo("mCE (AlexNet)", "%", (0.0, inf), is_headline=True),
    "mce_vs_reference": MetricInfo("mCE", "%", (0.0, inf)),
    "mean_accuracy": _percentage("mean accuracy", is_headline=True),
    "mean_calibration_error": _percentage("mean calibration error"),
    "mean_class_accuracy": _percentage("mean accuracy of classes"),
    "mean_error": _percentage("mean error"),
    "mean_error_extra": _percentage("mean error of extra corruptions"),
    "mean_iou": _percentage("mIoU", is_headline=True),
    "panoptic_quality": _percentage("PQ"),
    "parameters": MetricInfo("parameters"),
    "patch_rank": MetricInfo("effective rank of patches", limits=(1.0, inf)),
    "patch_top_variance": _percentage("variance along the first direction, patches"),
    "pixel_accuracy": _percentage("pixel accuracy"),
    "predicted_objects_per_image": MetricInfo("predicted objects per image", limits=(0.0, inf)),
    "recall_50": _percentage("recall at IoU 0.5"),
    "recall_75": _percentage("recall at IoU 0.75"),
    "recognition_quality": _percentage("RQ"),
    "relative_mce_vs_reference": MetricInfo("relative mCE", "%"),
    "robustness_score": MetricInfo("Score", is_headline=True),
    "segmentation_quality": _percentage("SQ"),
    "top1": _percentage("top-1", is_headline=True),
    "top1_std": MetricInfo("top-1, standard deviation over seeds", "points"),
    "top5": _percentage("top-5"),
    "top5_std": MetricInfo("top-5, standard deviation over seeds", "points"),
    "train_test_overlap": _percentage("train/test overlap"),
    "true_objects_per_image": MetricInfo("true objects per image", limits=(0.0, inf)),
}
"""The metrics of this package; another package may add its own."""

_HEADLINE_TAGS: Mapping[str, TagValue] = {"votes": "weighted", "k": 20}
"""The usual settings, where a headline is measured with several; of several layers, it is that of the last."""
_HEADLINE_GROUPS = ("set", "label_fraction", "input", "weights", "cells", "object_kind")
"""Tags that make a headline another one, rather than the same with another setting."""
_PREFIX_TAGS = ("set", "layer", "object_kind", "region_kind")  # shown before the metric's name: they group rows
_TAG_FORMATS = {
    "cells": "{} cells",
    "class": "{}",
    "classes": "{}",
    "clusters": "clusters assigned {}",
    "k": "k = {}",
    "object_kind": "{}",
    "part": "{}",
    "pooling": "{}",
    "precision": "{}",
    "reference": "relative to {}",
    "region_kind": "{}",
    "set": "{}",
    "votes": "{} votes",
    "weights": "{} weights",
}


@dataclass(frozen=True)
class Metric:
    """A value with its confidence interval."""

    key: str
    """The identifier in `METRIC_INFO`."""
    value: float
    count: int
    """The number of images, or of other samples that the protocol names, that it is computed over."""
    interval: tuple[float, float] | None = None
    """The 95 % confidence interval, within the limits of `METRIC_INFO`."""
    unit: str = ""
    """By default, that of `METRIC_INFO`."""
    tags: Mapping[str, TagValue] = field(default_factory=dict)
    """The layer, set, corruption, fraction of the labels, … that it is measured for."""
    notes: tuple[str, ...] = ()
    """Remarks for readers, such as the settings that were chosen."""

    def __post_init__(self) -> None:
        info = METRIC_INFO.get(self.key, MetricInfo(self.key))
        if not self.unit:
            object.__setattr__(self, "unit", info.unit)
        if self.interval is not None:  # a normal interval may end outside the possible values
            low, high = info.limits
            object.__setattr__(self, "interval", (max(self.interval[0], low), min(self.interval[1], high)))

    @property
    def identity(self) -> MetricIdentity:
        """The key and the tags, unique within a result."""
        return self.key, tuple(sorted(self.tags.items()))

    @property
    def label(self) -> str:
        """The name in tables.

        >>> Metric("top1", 58.0, 1024, tags={"k": 5, "votes": "plain", "layer": 12}).label
        'layer 12: top-1, k = 5, plain votes'
        >>> Metric("top1", 58.0, 1024, tags={"label_fraction": 0.01}).label
        'top-1, 1 % of the labels'
        """
        info = METRIC_INFO.get(self.key)
        name = info.display_name if info else self.key.replace("_", " ")
        prefixes = [_format_tag(tag, self.tags[tag]) for tag in _PREFIX_TAGS if tag in self.tags]
        suffixes = [_format_tag(tag, value) for tag, value in self.tags.items() if tag not in _PREFIX_TAGS]
        return ": ".join([*prefixes, ", ".join([name, *suffixes])])

    def format(self) -> str:
        """Return the value with its interval.

        >>> Metric("top1", 58.0, 1024, (54.9, 61.0)).format()
        '58.00 (54.90-61.00)'
        """
        value = f"{self.value:.2f}" if abs(self.value) < 1e6 else f"{self.value:.4g}"
        return f"{value} ({self.interval[0]:.2f}-{self.interval[1]:.2f})" if self.interval else value

    def to_json(self) -> dict[str, Any]:
        """Return the metric as stored in results.json."""
        return {**vars(self), "tags": dict(self.tags)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Metric":
        """Return a metric from results.json; format 1 has a `name` instead of key and tags, and one `note`."""
        if "name" in values:
            note, values = values.get("note"), {"key": values["name"], **values}
            values = {key: values[key] for key in ("key", "value", "count", "interval")}
            values |= {"notes": [note] if note else []}
        return cls(**dict(_StoredMetric.from_dict(values, source="metrics")))


class _StoredMetric(Config):
    """The types of a metric in results.json."""

    model_config = ConfigDict(strict=True, allow_inf_nan=True)

    key: str
    value: int | float
    count: int
    interval: Annotated[tuple[int | float, int | float], Field(strict=False)] | None = None
    unit: str = ""
    tags: dict[str, str | int | float] = Field({})
    notes: Annotated[tuple[str, ...], Field(strict=False)] = ()


def build_accuracy_metric(
    key: str, accuracy: float, count: int, *, tags: Mapping[str, TagValue] | None = None, notes: tuple[str, ...] = ()
) -> Metric:
    """Return an accuracy over `count` images, given in [0, 1], in percent with Wilson's interval."""
    from c2fmae.eval.intervals import wilson_interval  # needs torch

    interval = wilson_interval(accuracy, count, scale=100)
    return Metric(key, 100 * accuracy, count, interval, tags=tags or {}, notes=notes)


def select_headlines(metrics: Iterable[Metric]) -> list[Metric]:
    """Return the metrics to quote: one of each headline for each set; if there is none, the first of another package.

    >>> metrics = [Metric("top1", k, 10, tags={"k": k, "votes": "weighted"}) for k in (1, 20, 50)]
    >>> [metric.value for metric in select_headlines([*metrics, Metric("loss", 0, 10)])]
    [20]
    """
    metrics = list(metrics)
    groups: dict[Any, list[Metric]] = {}
    for metric in metrics:
        if metric.key in METRIC_INFO and METRIC_INFO[metric.key].is_headline:
            group = (metric.key, *(metric.tags.get(tag) for tag in _HEADLINE_GROUPS))
            groups.setdefault(group, []).append(metric)
    headlines = [max(group, key=_headline_rank) for group in groups.values()]
    return headlines or [metric for metric in metrics if metric.key not in METRIC_INFO][:1]


def _headline_rank(metric: Metric) -> tuple[int, float]:
    num_usual = sum(metric.tags.get(tag) == value for tag, value in _HEADLINE_TAGS.items())
    return num_usual, float(metric.tags.get("layer", 0))


def find_metric(metrics: Iterable[Metric], key: str, **tags: TagValue) -> Metric | None:
    """Return the metric with this key and exactly these tags; None if there is none."""
    return next((metric for metric in metrics if metric.identity == Metric(key, 0, 0, tags=tags).identity), None)


def _format_tag(tag: str, value: TagValue) -> str:
    if tag == "label_fraction":
        return f"{100 * float(value):g} % of the labels"
    return _TAG_FORMATS[tag].format(value) if tag in _TAG_FORMATS else f"{tag.replace('_', ' ')} {value}"
