"""What the masking functions refuse, and when.

Shapes, dtypes and Python numbers are looked at on every call. Tensor values are looked at only in eager mode
on a CPU: anywhere else it would stop the device or break the graph, and budgets are clamped instead.
"""

import torch
from torch import Tensor


def can_read_values(tensor: Tensor) -> bool:
    """Tell whether looking at the tensor's values costs nothing here."""
    return not torch.compiler.is_compiling() and tensor.device.type == "cpu"


def check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    """Refuse a tensor of another shape."""
    if tensor.shape != expected:
        raise ValueError(f"{name}: expected shape {list(expected)}, got {list(tensor.shape)}")


def check_batch_by_patch(name: str, tensor: Tensor) -> tuple[int, int]:
    """Refuse what is not [batch, patch]; return both lengths."""
    if tensor.ndim != 2:
        raise ValueError(f"{name}: expected [batch, patch], got shape {list(tensor.shape)}")
    return tensor.shape[0], tensor.shape[1]


def check_ids(name: str, tensor: Tensor) -> None:
    """Refuse what is not of an integer dtype."""
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"{name}: expected an integer dtype, got {tensor.dtype}")


def check_int32_ids(name: str, tensor: Tensor) -> None:
    """Refuse ids that are no integers, or, where a look costs nothing, that do not fit 32 bits."""
    check_ids(name, tensor)
    if tensor.dtype == torch.int64 and tensor.numel() and can_read_values(tensor):
        low, high = tensor.aminmax()
        if low < -(1 << 31) or high >= 1 << 31:
            raise ValueError(f"{name}: expected ids of 32 bits, got {int(low)} to {int(high)}")


def check_floating_point(name: str, tensor: Tensor) -> None:
    """Refuse what is not of a floating-point dtype."""
    if not tensor.is_floating_point():
        raise ValueError(f"{name}: expected a floating-point dtype, got {tensor.dtype}")


def check_noise(noise: Tensor, shape: tuple[int, int]) -> None:
    """Refuse noise of another shape than the patches', or that is not real."""
    check_shape("noise", noise, shape)
    check_floating_point("noise", noise)


def check_mask(name: str, mask: Tensor, shape: tuple[int, int]) -> None:
    """Refuse what is not a boolean for every patch."""
    check_shape(name, mask, shape)
    if mask.dtype != torch.bool:
        raise ValueError(f"{name}: expected a boolean mask, got {mask.dtype}")


def validate_budget(num_masked: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the budget as an int64 column in [0, patches]."""
    batch, patches = shape
    check_shape("num_masked", num_masked, (batch,))
    check_ids("num_masked", num_masked)
    num_masked = num_masked.long()
    if can_read_values(num_masked) and batch:
        low, high = (int(bound) for bound in num_masked.aminmax())
        if low < 0:
            raise ValueError(f"num_masked: a budget cannot be negative, got {low}")
        if high > patches:
            raise ValueError(f"num_masked: {high} patches cannot be hidden of {patches}")
    return num_masked.clamp(0, patches).unsqueeze(1)


def validate_share(name: str, share: float | Tensor, like: Tensor) -> Tensor:
    """Return a share in [0, 1], given once or for each image, as a float64 column."""
    if isinstance(share, Tensor):
        check_shape(name, share, (len(like),))
        check_floating_point(name, share)
        if can_read_values(share) and bool(((share < 0) | (share > 1) | share.isnan()).any()):
            raise ValueError(f"{name}: expected shares in [0, 1], got {share.tolist()}")
        return share.to(like.device, torch.float64).unsqueeze(1)
    if not 0 <= share <= 1:
        raise ValueError(f"{name}: expected a share in [0, 1], got {share}")
    # Added, not filled in: torch.compile bakes a fill value into its graph, and makes a new one for every value.
    return torch.zeros(len(like), 1, dtype=torch.float64, device=like.device) + share


def validate_coefficients(alpha: float | Tensor, beta: float | Tensor, like: Tensor) -> Tensor:
    """Return (α, β, 1 - α - β) for each image, in float64."""
    first, second = validate_share("alpha", alpha, like), validate_share("beta", beta, like)
    rest = 1 - first - second
    # 0.7 + 0.3 may miss 1 by a rounding, and float32 coefficients by more
    if can_read_values(rest) and bool((rest < -1e-6).any()):
        raise ValueError(f"alpha + beta: expected at most 1, got {1 - float(rest.min()):g}")
    return torch.cat([first, second, rest.clamp(min=0)], dim=1)
