"""AdamW, its parameter groups, and its moments by parameter name."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from c2fmae.core.errors import UserError
from c2fmae.core.layers import LayeredModel
from c2fmae.core.sharding import compute_norms, shard_like, to_local_tensor


def build_parameter_groups(model: nn.Module, *, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Group a model's trainable parameters by weight decay and by their factor of the learning rate, `lr_scale`.

    Weights of linear maps and convolutions decay; biases, norms, tokens and embeddings do not. With `layer_decay` < 1,
    layer i of a `LayeredModel` whose trunk has L blocks gets the factor layer_decay^(L + 1 - i), where layer 0 holds
    the embeddings and tokens; all other parameters get 1. Each group has a `name` and its parameters' `names`.
    """
    decayed_ids = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and module.weight.ndim > 1
    }
    layers = _trunk_layers(model) if layer_decay != 1.0 else []
    layer_by_id = {id(parameter): index for index, layer in enumerate(layers) for parameter in layer}
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_decayed = id(parameter) in decayed_ids
        layer = layer_by_id.get(id(parameter), len(layers))
        group_name = f"layer {layer}, " if layers else ""
        group_name += "decayed" if is_decayed else "not decayed"
        group = groups.setdefault(
            group_name,
            {
                "name": group_name,
                "lr_scale": layer_decay ** (len(layers) - layer),
                "is_decayed": is_decayed,
                "weight_decay": weight_decay if is_decayed else 0.0,
                "names": [],
                "params": [],
            },
        )
        group["names"].append(name)
        group["params"].append(parameter)
    return list(groups.values())


def build_adamw(groups: list[dict[str, Any]], *, betas: tuple[float, float], eps: float = 1e-8) -> torch.optim.AdamW:
    """Return a fused AdamW with a learning rate of 0; `set_lr` sets it before each step."""
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=True)


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Set each group's learning rate to `lr` times its `lr_scale`."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["lr_scale"]


def set_weight_decay(optimiser: torch.optim.Optimizer, weight_decay: float) -> None:
    """Set the weight decay of the groups that decay."""
    for group in optimiser.param_groups:
        if group["is_decayed"]:
            group["weight_decay"] = weight_decay


@torch.no_grad()
def clip_each_gradient(gradients: Sequence[Tensor], max_norm: float) -> None:
    """Scale each gradient whose norm is larger than `max_norm` down to it, in place."""
    factors = (max_norm / (compute_norms(gradients) + 1e-6)).clamp(max=1.0)  # as in torch's clipping of all gradients
    torch._foreach_mul_([to_local_tensor(gradient) for gradient in gradients], [*factors.unbind()])


def step_if(optimiser: torch.optim.AdamW, condition: Bool[Tensor, ""]) -> None:
    """Take a step if the condition holds, which only the device reads. Otherwise weights and state stay as they are.

    Fused optimisers skip a step by `found_inf`, which `torch.amp.GradScaler` sets in the same way.
    """
    optimiser.found_inf = (~condition).float()  # type: ignore[attr-defined]
    optimiser.step()
    del optimiser.found_inf  # type: ignore[attr-defined]


def get_moments(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state by parameter name and key, such as `blocks.0.norm1.weight/exp_avg`."""
    return {
        f"{name}/{key}": value
        for name, parameter in _named_group_parameters(optimiser)
        for key, value in optimiser.state.get(parameter, {}).items()
    }


def load_moments(optimiser: torch.optim.Optimizer, saved: dict[str, Tensor]) -> None:
    """Restore the state that `get_moments` returned, by name; parameters without saved state keep theirs.

    Raises a `UserError` for tensors that the optimiser cannot have.
    """
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, value in saved.items():
        name, _, state_key = key.rpartition("/")
        by_name.setdefault(name, {})[state_key] = value
    parameters = dict(_named_group_parameters(optimiser))
    for name, state in by_name.items():
        _check_moments(name, state, parameters.get(name))
    for name, parameter in parameters.items():
        if name in by_name:
            optimiser.state[parameter] = {
                key: (shard_like(value, parameter) if value.shape == parameter.shape else value).to(parameter.device)
                for key, value in by_name[name].items()
            }


def _check_moments(name: str, state: dict[str, Tensor], parameter: nn.Parameter | None) -> None:
    for key, value in state.items():
        is_count = key == "step" and value.numel() == 1 and value.is_floating_point()
        is_moment = key in ("exp_avg", "exp_avg_sq") and parameter is not None and value.shape == parameter.shape
        if parameter is None or not (is_count or (is_moment and value.dtype == parameter.dtype)):
            raise UserError(
                f"the checkpoint has an unexpected tensor, optimiser/{name}/{key} of shape {tuple(value.shape)} and "
                f"dtype {value.dtype}. Use another checkpoint"
            )


def _named_group_parameters(optimiser: torch.optim.Optimizer) -> Iterable[tuple[str, nn.Parameter]]:
    for group in optimiser.param_groups:
        yield from zip(group["names"], group["params"], strict=True)


def _trunk_layers(model: nn.Module) -> list[list[nn.Parameter]]:
    if not isinstance(model, LayeredModel):
        raise UserError(
            f"training.layer_decay: {type(model).__name__} does not declare its layers (trunk_layers is missing). "
            "Set training.layer_decay=1"
        )
    return [[*layer] for layer in model.trunk_layers()]
