"""The protocol of a training of a segmenter and of its test, in words."""

from c2fmae.core.specs import SegmenterSpec
from c2fmae.core.training import TrainingPlan
from c2fmae.eval.datasets import OpenedSet
from c2fmae.eval.segmentation.config import SegmentConfig
from c2fmae.eval.training_protocol import describe_clipping, describe_frozen, describe_optimisation

_NORMS = {"batch": "batch norms", "group": "group norms", "layer": "layer norms"}


def describe_training(config: SegmentConfig, plan: TrainingPlan, spec: SegmenterSpec, train_name: str) -> str:
    """Return a description of the model and its training, so that readers can compare results with others."""
    data, training = config.data, config.training
    size = spec.backbone.image_size
    layers = f"block {spec.depths[0]}" if len(spec.depths) == 1 else f"blocks {', '.join(map(str, spec.depths))}"
    clauses = [
        *describe_optimisation(config, training, plan, train_name, size),
        f"{spec.head.name} on {layers}{'' if spec.normed else ', not normed'}, {_NORMS[spec.norm]}"
        f"{' of parts of a batch' if config.norm_is_local else ''}"
        f"{', relative position biases' if spec.relative == 'bias' else ''}",
        *([f"an auxiliary loss of weight {config.auxiliary_weight:g}"] if has_auxiliary_head(spec) else []),
        f"images scaled by {data.scale[0]:g} to {data.scale[1]:g} of a shorter side of "
        f"{data.short_side or min(size)} pixels",
        *([f"crops with less than {100 * data.max_class_share:g} % of one class"] if data.max_class_share < 1 else []),
        "colours distorted" if data.distort else "colours not distorted",
        *([f"{data.repeats} views of an image in a batch"] if data.repeats != 1 else []),
        *describe_clipping(training),
        *describe_frozen(config),
        *([f"with {100 * data.fraction:g} % of the images"] if data.fraction != 1 else []),
    ]
    return f"{'; '.join(clauses)}. The last weights are the result."


def describe_test(config: SegmentConfig, spec: SegmenterSpec, test: OpenedSet) -> str:
    """Return a description of a test."""
    stride = test.scenes.info.label_stride
    labels = f" The truth is the label of one pixel in every {stride} × {stride}." if stride > 1 else ""
    return (
        f"Tested on {test}: {config.testing.describe(spec.backbone.image_size)}.{labels} IoU in percent from one "
        "confusion matrix over all labelled pixels of all images, averaged over the classes that occur or are "
        "predicted."
    )


def has_auxiliary_head(spec: SegmenterSpec) -> bool:
    """Return whether a head is trained with an auxiliary one."""
    return spec.head.options.get("auxiliary") is not None
