"""The cost of pre-training: parameters, and floating-point operations of the forward pass of one image, by module.

A multiply-add counts as two operations, and only matrix products are counted, as is usual. A training step, with its
backward pass, takes about three times as many.

>>> from c2fmae.methods.masked.cost import compute_pretraining_cost
>>> from c2fmae.methods import METHODS
>>> cost = compute_pretraining_cost(METHODS.get("c2fmae")())
>>> {name: f"{part.flops / 1e9:.2f} GFLOP" for name, part in cost.part_costs.items()}
{'embeddings': '0.14 GFLOP', 'encoder': '17.18 GFLOP', 'decoder': '3.71 GFLOP', 'heads': '0.34 GFLOP'}
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from c2fmae.config.masked_method import MaskedConfig
from c2fmae.config.method import ImageSize
from c2fmae.core.granularity import GRANULARITIES
from c2fmae.core.masks import Masks
from c2fmae.core.operation_count import ForwardCost, OperationCounter, PartCost, count_parameters, count_with_torch
from c2fmae.masking import apportion
from c2fmae.methods import MaskedAutoencoding, build_method
from c2fmae.models import MultiGranularAutoencoder, label_stride


def compute_pretraining_cost(
    config: MaskedConfig, image_size: ImageSize | None = None, *, counter: OperationCounter = count_with_torch
) -> ForwardCost:
    """Return the cost of a method; the model is built on the meta device and nothing is computed.

    `image_size` defaults to the method's. The numbers of visible patches per granularity are the average ones, and the
    decoder is that of a training step.
    """
    with torch.device("meta"):
        method = build_method(config)
    model = method.model.eval()
    assert isinstance(model, MultiGranularAutoencoder)
    maps, masks = _make_mean_inputs(method, image_size or config.image_size)
    flops = dict(counter(model, {name: map_.to("meta") for name, map_ in maps.items()}, masks.to("meta")))
    flops["heads"] = sum(flops[f"heads.{name}"] for name in model.heads)
    # Only on a CPU does a granularity embed its own patches alone: on other devices the number of patches is fixed.
    embeddings = model.embeddings.to_empty(device="cpu")
    flops["embeddings"] = counter(embeddings, maps, masks)[""]
    stages = getattr(model.decoder, "stages", None)  # decoders of other packages may have no stages
    stages = stages if isinstance(stages, nn.ModuleDict) else {}
    return ForwardCost(
        {name: PartCost(flops.get(name, 0), count_parameters(part)) for name, part in model.named_children()},
        {
            name: PartCost(flops.get(f"decoder.stages.{name}", 0), count_parameters(stage))
            for name, stage in stages.items()
        },
    )


def compute_image_flops(config: MaskedConfig) -> float:
    """Return the operations of a training step for one image, the mean over the image sizes of a run."""
    flops, start = 0.0, 0.0
    for end, size in config.image_size_schedule:
        flops += 3 * (end - start) * compute_pretraining_cost(config, size).flops
        start = end
    return flops


def _make_mean_inputs(method: MaskedAutoencoding, image_size: ImageSize) -> tuple[dict[str, Tensor], Masks]:
    """Return blank maps of one image, and masks with the average budgets."""
    config, patch = method.config, method.patch_size
    height, width = image_size
    names, num_patches = config.granularities, height // patch * (width // patch)
    num_visible = config.resolve_num_visible(num_patches, method.masking.full_num_patches)
    weights = torch.tensor([[config.concentration.get(name, 1.0) for name in names]], dtype=torch.float64)
    budgets = apportion(weights, torch.tensor([num_visible]), torch.full((1, len(names)), num_patches))
    is_masked = torch.arange(num_patches) >= budgets.unsqueeze(2)
    maps = {}
    for name in names:
        stride = label_stride(patch)
        if GRANULARITIES.get(name).kind == "ids":
            maps[name] = torch.zeros(1, height // stride, width // stride, dtype=torch.uint8)
        else:
            maps[name] = torch.zeros(1, config.num_channels(name), height, width)
    masks = Masks.from_mask(is_masked, names, num_visible=num_visible)
    if (num_decoded := config.decoder.resolve_num_decoded(num_patches)) is not None:
        decoded_idx = torch.arange(num_patches - num_decoded, num_patches)
        masks = replace(masks, decoded_idx=decoded_idx.expand(1, len(names), -1))
    return maps, masks
