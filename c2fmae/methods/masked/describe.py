"""The architecture of a method as a table: inputs, wiring of the stages, shapes and cost of each module."""

from typing import NamedTuple

import torch

from c2fmae.config.masked_method import MaskedConfig
from c2fmae.core.decoder_options import CascadedOptions, JointOptions, ParallelOptions
from c2fmae.core.granularity import GRANULARITIES
from c2fmae.core.operation_count import ForwardCost, PartCost
from c2fmae.core.text import format_count
from c2fmae.methods import MaskedAutoencoding, build_method
from c2fmae.methods.masked.cost import compute_pretraining_cost
from c2fmae.models import Encoder, label_stride


class ArchitectureRow(NamedTuple):
    """One module, or one of its inputs or stages, whose names are indented."""

    name: str
    description: str
    shape: str = ""
    """Tokens × width."""
    cost: PartCost | None = None


def describe_architecture(config: MaskedConfig) -> list[ArchitectureRow]:
    """List the modules of a method from the input maps to the losses.

    In the descriptions of stages, T is the decoder state (all tokens) and F the output of a stage.
    """
    with torch.device("meta"):
        method = build_method(config)
    cost = compute_pretraining_cost(config)
    encoder = method.model.get_submodule("encoder")
    assert isinstance(encoder, Encoder)
    names, (rows, columns) = config.granularities, (side // method.patch_size for side in config.image_size)
    num_patches = rows * columns
    num_decoded = config.decoder.resolve_num_decoded(num_patches) or num_patches
    num_tokens, num_visible = len(names) * num_patches, config.resolve_num_visible(num_patches)
    norm = ", norm" if config.encoder.has_norm else ""
    has_mask_token = method.model.mask_token is not None
    return [
        ArchitectureRow("input", f"{rows}×{columns} patches of {method.patch_size}×{method.patch_size} pixels"),
        *(_input_row(method, name, num_patches) for name in names),
        ArchitectureRow("masks", f"{config.masking.name}, {num_visible} of {num_tokens} patches visible"),
        ArchitectureRow(
            "embeddings",
            "visible patches, with positions",
            f"{num_visible} × {encoder.dim}",
            cost.part_costs["embeddings"],
        ),
        ArchitectureRow(
            "encoder",
            f"{config.encoder.name}, {format_count(len(encoder.blocks), 'block')}{norm}"
            + ", mask tokens for hidden patches" * has_mask_token,
            f"{encoder.num_prefix_tokens} + {num_tokens if has_mask_token else num_visible} × {encoder.dim}",
            cost.part_costs["encoder"],
        ),
        ArchitectureRow(
            "decoder",
            _describe_decoder(config),
            f"{len(names) * num_decoded} × {config.decoder.resolve_dim(encoder.dim)}",
            cost.part_costs["decoder"],
        ),
        *_stage_rows(config, cost, num_decoded),
        ArchitectureRow("heads", "losses of hidden patches only", "", cost.part_costs["heads"]),
        *(_head_row(method, name, num_decoded) for name in method.objectives),
        ArchitectureRow("total", "forward, one image", "", PartCost(cost.flops, cost.parameters)),
    ]


def _input_row(method: MaskedAutoencoding, name: str, num_patches: int) -> ArchitectureRow:
    kind, channels = GRANULARITIES.get(name).kind, method.config.num_channels(name)
    height, width = method.config.image_size
    if kind == "ids":
        stride = label_stride(method.patch_size)
        side = method.patch_size // stride
        description = f"{height // stride}×{width // stride} cells of {channels} ids, {side}×{side} per patch"
    else:
        description = f"{height}×{width} pixels, {format_count(channels, 'channel')}"
    return ArchitectureRow(f"  {name}", description, f"{num_patches}")


def _describe_decoder(config: MaskedConfig) -> str:
    wiring, share = _describe_wiring(config), config.decoder.share
    return wiring if share == 1 else f"{wiring}, for {share:.3g} of the patches"


def _describe_wiring(config: MaskedConfig) -> str:
    options, order = config.decoder.options, " → ".join(dict.fromkeys(head.stage for head in config.head_plans()))
    match config.decoder.name:
        case "cascaded":
            return f"cascaded, {order}"
        case "reversed":
            return f"cascaded, {' → '.join(reversed(order.split(' → ')))}"
        case "joint":
            norm = ", norm" if isinstance(options, JointOptions) and options.has_norm else ""
            return f"joint, {format_count(options.depth, 'block')}{norm}"
        case "direct":
            return "direct: none"
        case other:
            return other


def _stage_rows(config: MaskedConfig, cost: ForwardCost, num_decoded: int) -> list[ArchitectureRow]:
    options, rows, earlier = config.decoder.options, [], list[str]()
    for name, part in cost.stage_costs.items():
        first = "self-attention"
        if isinstance(options, ParallelOptions):
            carried = earlier if isinstance(options, CascadedOptions) else []
            if isinstance(options, CascadedOptions) and options.carry == "last":
                carried = earlier[-1:]
            context = "T" if options.context == "all" else "visible T"
            first = f"cross-attention to {' + '.join([context, *(f'F {stage}' for stage in carried)])}"
        description = f"{first}; {options.depth} self-attention blocks"
        rows.append(ArchitectureRow(f"  {name}", description, f"{num_decoded} × {options.dim}", part))
        earlier.append(name)
    return rows


def _head_row(method: MaskedAutoencoding, name: str, num_decoded: int) -> ArchitectureRow:
    objective = method.objectives[name]
    target = next(head.target.name for head in method.config.head_plans() if head.name == name)
    return ArchitectureRow(
        f"  {name}", f"{target}, loss × {objective.weight:g}", f"{num_decoded} × {objective.target.size}"
    )


def format_architecture(rows: list[ArchitectureRow]) -> str:
    """Return rows as a text table with a header."""
    lines = [("", "", "tokens × width", "parameters", "FLOP")]
    for row in rows:
        numbers = (_format_amount(row.cost.parameters), _format_amount(row.cost.flops)) if row.cost else ("", "")
        lines.append((row.name, row.description, row.shape, *numbers))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{'<' if index < 2 else '>'}{widths[index]}}" for index, cell in enumerate(line)).rstrip()
        for line in lines
    )


def _format_amount(number: int) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number / 1e3:.2f} k"
