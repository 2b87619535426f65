"""AdamW, and which parameters it treats how."""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from c2fmae.core.sharding import shard_like

TRUNK_PREFIXES = ("embeddings.", "encoder.", "backbone.")
"""Where models keep their ViT, with what embeds for it."""

_BLOCK_PATTERN = re.compile(r"(?:^|\.)blocks\.(\d+)\.")


def build_parameter_groups(
    model: nn.Module, *, weight_decay: float, layer_decay: float = 1.0, trunk: tuple[str, ...] = ("",)
) -> list[dict[str, Any]]:
    """Group parameters by weight decay and share of the learning rate; each group has a name and its parameters' names.

    Matrices of linear maps and convolutions decay; biases, norms, tokens and embeddings do not. With `layer_decay`,
    the parameters under the prefixes `trunk` learn slower the deeper they lie: block i of L by layer_decay^(L - i),
    what comes before the blocks, embeddings and tokens, by layer_decay^(L + 1). What comes after them, or is outside
    the trunk, learns at full rate.
    """
    decaying = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and module.weight.ndim > 1
    }
    depth = 1 + max(
        (int(found[1]) for name in _trunk_parameter_names(model, trunk) if (found := _BLOCK_PATTERN.search(name))),
        default=-1,
    )
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = id(parameter) in decaying
        layer = _layer_index(name, depth) if layer_decay != 1.0 and name.startswith(trunk) else depth + 1
        group_name = f"layer {layer}, " if layer_decay != 1.0 else ""
        group_name += "decayed" if decays else "not decayed"
        group = groups.setdefault(
            group_name,
            {
                "name": group_name,
                "lr_scale": layer_decay ** (depth + 1 - layer),
                "weight_decay": weight_decay if decays else 0.0,
                "names": [],
                "params": [],
            },
        )
        group["names"].append(name)
        group["params"].append(parameter)
    return list(groups.values())


def build_adamw(groups: list[dict[str, Any]], *, betas: tuple[float, float], eps: float = 1e-8) -> torch.optim.AdamW:
    """Return a fused AdamW; its learning rate is set before each step by `set_lr`."""
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=True)


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its share of the learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["lr_scale"]


def get_moments(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return all that the optimiser remembers, by parameter: `blocks.0.norm1.weight/exp_avg`."""
    return {
        f"{name}/{key}": value
        for name, parameter in _named_group_parameters(optimiser)
        for key, value in optimiser.state.get(parameter, {}).items()
    }


def load_moments(optimiser: torch.optim.Optimizer, saved: dict[str, Tensor]) -> None:
    """Make the optimiser remember what `get_moments` returned."""
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, value in saved.items():
        name, _, state_key = key.rpartition("/")
        by_name.setdefault(name, {})[state_key] = value
    for name, parameter in _named_group_parameters(optimiser):
        if name in by_name:
            optimiser.state[parameter] = {
                key: (shard_like(value, parameter) if value.shape == parameter.shape else value).to(parameter.device)
                for key, value in by_name[name].items()
            }


def _named_group_parameters(optimiser: torch.optim.Optimizer) -> Iterable[tuple[str, nn.Parameter]]:
    for group in optimiser.param_groups:
        yield from zip(group["names"], group["params"], strict=True)


def _trunk_parameter_names(model: nn.Module, trunk: tuple[str, ...]) -> Iterable[str]:
    return (name for name, _ in model.named_parameters() if name.startswith(trunk))


def _layer_index(name: str, depth: int) -> int:
    """Return 0 before the blocks, i + 1 in block i, and one more than the last after them."""
    if found := _BLOCK_PATTERN.search(name):
        return int(found[1]) + 1
    is_before = any(word in name for word in ("embed", "token", "norm_pre"))
    return 0 if is_before else depth + 1
