"""The protocol of a training of a detector and of its test, in words."""

from c2fmae.core.training import TrainingPlan
from c2fmae.eval.datasets import OpenedSet
from c2fmae.eval.detection.config import DetectConfig
from c2fmae.eval.training_protocol import describe_clipping, describe_frozen, describe_optimisation

_NORMS = {"batch": "batch norms", "group": "group norms", "layer": "layer norms"}


def describe_training(config: DetectConfig, plan: TrainingPlan, train_name: str) -> str:
    """Return a description of the model and its training, so that readers can compare results with others."""
    data, training = config.data, config.training
    clauses = [
        *describe_optimisation(config, training, plan, train_name, data.canvas),
        _describe_backbone(config),
        _describe_heads(config),
        _describe_images(config),
        *([f"{data.repeats} views of an image in a batch"] if data.repeats != 1 else []),
        *describe_clipping(training),
        *describe_frozen(config),
        *([f"with {100 * data.fraction:g} % of the images"] if data.fraction != 1 else []),
    ]
    return f"{'; '.join(clauses)}. The last weights are the result."


def describe_test(config: DetectConfig, test: OpenedSet) -> str:
    """Return a description of a test."""
    return f"Tested on {test}: {config.testing.describe()}. AP in percent, as COCO defines it."


def _describe_backbone(config: DetectConfig) -> str:
    pyramid, windows = config.pyramid, config.windows
    depths = f"block {pyramid.depths[0]}" if len(pyramid.depths) == 1 else f"blocks {_join(pyramid.depths)}"
    kinds = {"fpn": "an FPN", "simple": "a simple pyramid"}
    relative = {"none": "", "bias": ", relative position biases", "decomposed": ", decomposed relative positions"}
    attention = ""
    if windows is not None:
        attention = f", windows of {windows.size} patches except in blocks {_join(windows.global_blocks)}"
    return f"{kinds[pyramid.name]} of {depths}, {_NORMS[pyramid.norm]}{attention}{relative[config.relative]}"


def _describe_heads(config: DetectConfig) -> str:
    box, mask = config.box_head, config.mask_head
    losses = {"l1": "an L1 loss", "smooth_l1": "a smooth L1 loss", "giou": "a GIoU loss"}
    norm = f", {_NORMS[box.norm]}" if box.norm is not None and box.num_convs else ""
    heads = "boxes only" if mask is None else f"masks of {2 * mask.roi_size}×{2 * mask.roi_size}"
    local = ", statistics of parts of a batch" if config.norm_is_local else ""
    return (
        f"a box head of {box.num_convs} convolutions and {box.num_fcs} linear layers{norm} with "
        f"{losses[box.box_loss.name]} of weight {box.box_loss.weight:g}; {heads}{local}"
    )


def _describe_images(config: DetectConfig) -> str:
    data = config.data
    if data.canvas is not None:
        size = f"{data.canvas[0]}×{data.canvas[1]}"
        return (
            f"images scaled by {data.scale[0]:g} to {data.scale[1]:g} of the size that fits {size}, and cropped to it"
        )
    crops = ", of random parts of half of the images" if data.crops else ""
    low, high = min(data.sides), max(data.sides)
    sides = f"{low}" if low == high else f"{low} to {high}"
    return f"shorter sides of {sides} pixels, longer ones at most {data.max_side}{crops}"


def _join(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
