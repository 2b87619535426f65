"""A method's architecture in text: what comes in, what reads what, and what each part costs."""

from typing import NamedTuple

import torch

from c2fmae.core.operation_count import Cost, Part
from c2fmae.core.scene import GRANULARITIES
from c2fmae.methods import MaskedAutoencoding, MethodConfig, build_method
from c2fmae.methods.cost import cost_of
from c2fmae.models import Encoder, label_stride


class _Row(NamedTuple):
    name: str
    what: str
    shape: str = ""
    """Tokens × width."""
    cost: Part | None = None


def describe(config: MethodConfig) -> str:
    """Return the architecture as a table, from the maps that come in to the losses.

    T is the decoder's state, all tokens; F what a stage made of its own.
    """
    with torch.device("meta"):
        method = build_method(config)
    cost = cost_of(config)
    encoder = method.model.get_submodule("encoder")
    assert isinstance(encoder, Encoder)
    names, (rows, columns) = config.granularities, (side // method.patch for side in config.image_size)
    num_patches = rows * columns
    num_tokens, num_visible = len(names) * num_patches, config.visible_of(num_patches)
    norm = ", norm" if config.encoder.has_norm else ""
    return _table(
        [
            _Row("in", f"{rows}×{columns} patches of {method.patch}×{method.patch} pixels"),
            *(_input(method, name, num_patches) for name in names),
            _Row("masks", f"{config.masking.policy}, {num_visible} of {num_tokens} patches visible"),
            _Row(
                "embeddings",
                "of visible patches, with positions",
                f"{num_visible} × {encoder.dim}",
                cost.parts["embeddings"],
            ),
            _Row(
                "encoder",
                f"{config.encoder.name}, {len(encoder.blocks)} blocks{norm}",
                f"{encoder.num_prefix} + {num_visible} × {encoder.dim}",
                cost.parts["encoder"],
            ),
            _Row("decoder", _wiring(config), f"{num_tokens} × {config.decoder.dim}", cost.parts["decoder"]),
            *_stages(config, cost, num_patches),
            _Row("heads", "the losses count hidden patches alone", "", cost.parts["heads"]),
            *(_head(method, name, num_patches) for name in method.objectives),
            _Row("total", "forward, one image", "", Part(cost.flops, cost.parameters)),
        ]
    )


def _input(method: MaskedAutoencoding, name: str, num_patches: int) -> _Row:
    kind, channels = GRANULARITIES.get(name).kind, method.config.channels_of(name)
    height, width = method.config.image_size
    if kind == "ids":
        stride = label_stride(method.patch)
        side = method.patch // stride
        what = f"{height // stride}×{width // stride} ids of {channels}, {side}×{side} a patch"
    else:
        what = f"{height}×{width} pixels, {channels} channel{'s' if channels > 1 else ''}"
    return _Row(f"  {name}", what, f"{num_patches}")


def _wiring(config: MethodConfig) -> str:
    decoder = config.decoder
    order = " → ".join(dict.fromkeys(head.stage for head in config.heads()))
    match decoder.name:
        case "cascaded":
            return f"cascaded, {order}"
        case "reversed":
            return f"cascaded, {' → '.join(reversed(order.split(' → ')))}"
        case "joint":
            return f"joint, {decoder.depth} blocks{', norm' if decoder.has_norm else ''}"
        case other:
            return other


def _stages(config: MethodConfig, cost: Cost, num_patches: int) -> list[_Row]:
    decoder, rows, earlier = config.decoder, [], list[str]()
    context = "T" if decoder.context == "all" else "visible T"
    for name, part in cost.stages.items():
        carried = earlier[-1:] if decoder.carry == "last" else earlier
        reads = " + ".join([context, *(f"F {each}" for each in carried if decoder.name in ("cascaded", "reversed"))])
        first = "self-attention" if decoder.name == "self_attention" else f"cross-attention to {reads}"
        what = f"{first}; {decoder.depth} self-attention blocks"
        rows.append(_Row(f"  {name}", what, f"{num_patches} × {decoder.dim}", part))
        earlier.append(name)
    return rows


def _head(method: MaskedAutoencoding, name: str, num_patches: int) -> _Row:
    objective = method.objectives[name]
    target = next(head.target for head in method.config.heads() if head.name == name)
    return _Row(f"  {name}", f"{target}, loss × {objective.weight:g}", f"{num_patches} × {objective.target.size}")


def _table(rows: list[_Row]) -> str:
    lines = [("", "", "tokens × width", "parameters", "FLOP")]
    for row in rows:
        numbers = (_amount(row.cost.parameters), _amount(row.cost.flops)) if row.cost else ("", "")
        lines.append((row.name, row.what, row.shape, *numbers))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{'<' if at < 2 else '>'}{widths[at]}}" for at, cell in enumerate(line)).rstrip()
        for line in lines
    )


def _amount(number: int) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number / 1e3:.2f} k"
