"""The cost of two-branch methods: parameters, and the operations of a step for one image, all views together."""

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from c2fmae.core.operation_count import ForwardCost, PartCost, count_parameters
from c2fmae.masking.noise import RowGenerator
from c2fmae.methods.branches.views import ViewBatch

if TYPE_CHECKING:
    from c2fmae.methods.branches.method import BranchMethod

NUM_IMAGES = 2
"""Images of the counted batch: the fewest that all methods accept. What compares images grows with their number."""


class _GradientCounter(TorchDispatchMode):
    """Counts operations by whether a gradient is computed: those of the student, and others, of the teacher."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops: Counter[bool] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        output = func(*args, **(kwargs or {}))
        if (count_flops := flop_registry.get(func.overloadpacket)) is not None:
            self.flops[torch.is_grad_enabled()] += count_flops(*args, **(kwargs or {}), out_val=output)
        return output


def compute_branch_cost(method: "BranchMethod") -> ForwardCost:
    """Return the cost of one image. The method is on the meta device, so nothing is computed.

    Losses and logits over the batch are a part of the heads.
    """
    batch, model = make_blank_batch(method, NUM_IMAGES), method.model
    with torch.enable_grad(), FlopCounterMode(display=False) as modules, _GradientCounter() as counter:
        (batch,) = method.add_targets([batch], is_training=False)
        model(lambda model: method.compute_losses(model, batch))
    by_module, name = modules.get_flop_counts(), type(model).__name__
    of_module = {module: sum(counts.values()) for module, counts in by_module.items()}
    blocks = [f"{name}.encoder.blocks.{index}" for index in range(len(model.encoder.blocks))]
    flops = {
        "embeddings": of_module[f"{name}.embeddings.rgb"],
        "encoder": sum(of_module[block] for block in blocks),
    }
    flops["heads"] = counter.flops[True] - sum(flops.values())
    return ForwardCost(
        {part: PartCost(flops[part] // NUM_IMAGES, count_parameters(getattr(model, part))) for part in flops},
        teacher_flops=counter.flops[False] // NUM_IMAGES,
    )


def make_blank_batch(method: "BranchMethod", size: int) -> ViewBatch:
    """Return a batch without content on the device of the model."""
    config, device = method.config, next(method.model.parameters()).device
    height, width = config.image_size
    sizes = {"main": (1, height, width)}
    sizes |= {name: (view.count, *(view.size or config.image_size)) for name, view in config.views.items()}
    grid = height // method.patch_size, width // method.patch_size
    with torch.device("cpu"):
        masks = type(method).draw_masks(config, grid, range(size), RowGenerator(0))
    channels = config.num_channels("rgb")
    views = {name: torch.zeros(size, count, channels, *sides, device=device) for name, (count, *sides) in sizes.items()}
    masks = {name: mask.to(device) for name, mask in masks.items()}
    return ViewBatch(("blank",) * size, views, masks, 0, size, numbers=method.final_numbers)
