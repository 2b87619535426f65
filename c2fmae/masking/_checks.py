"""Argument checks of the masking functions.

Shapes, dtypes and Python numbers are checked on every call. Tensor values are checked only in eager mode on a CPU:
elsewhere reading them would synchronise the device or break the graph, and budgets are clamped instead.
"""

import torch
from torch import Tensor


def can_read_values(tensor: Tensor) -> bool:
    """Return whether the tensor's values can be read without synchronising a device or breaking a graph."""
    return not torch.compiler.is_compiling() and tensor.device.type == "cpu"


def check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    """Raise a ValueError unless the tensor has the expected shape."""
    if tensor.shape != expected:
        raise ValueError(f"{name}: expected shape {list(expected)}, got {list(tensor.shape)}")


def check_batch_by_patch(name: str, tensor: Tensor) -> tuple[int, int]:
    """Return the batch size and the number of patches, at least 1, of a [batch, patch] tensor."""
    if tensor.ndim != 2 or not tensor.shape[1]:
        raise ValueError(f"{name}: expected [batch, patch] with at least 1 patch, got shape {list(tensor.shape)}")
    return tensor.shape[0], tensor.shape[1]


def check_ids(name: str, tensor: Tensor) -> None:
    """Raise a ValueError unless the dtype is an integer."""
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"{name}: expected an integer dtype, got {tensor.dtype}")


def check_int32_ids(name: str, tensor: Tensor) -> None:
    """Raise a ValueError unless ids are integers and, where values can be read, fit 32 bits."""
    check_ids(name, tensor)
    if tensor.dtype == torch.int64 and tensor.numel() and can_read_values(tensor):
        low, high = tensor.aminmax()
        if low < -(1 << 31) or high >= 1 << 31:
            raise ValueError(f"{name}: expected ids of 32 bits, got {int(low)} to {int(high)}")


def check_floating_point(name: str, tensor: Tensor) -> None:
    """Raise a ValueError unless the dtype is floating-point."""
    if not tensor.is_floating_point():
        raise ValueError(f"{name}: expected a floating-point dtype, got {tensor.dtype}")


def check_concentration(concentration: Tensor) -> None:
    """Raise a ValueError unless there is one finite number above 0 per granularity."""
    if concentration.ndim != 1:
        raise ValueError(f"concentration: expected one number per granularity, got shape {list(concentration.shape)}")
    if can_read_values(concentration) and not bool(((concentration > 0) & concentration.isfinite()).all()):
        raise ValueError(f"concentration: expected finite numbers above 0, got {concentration.tolist()}")


def check_noise(noise: Tensor, shape: tuple[int, int]) -> None:
    """Raise a ValueError unless noise is floating-point, without NaN, and has the shape of the patches."""
    check_shape("noise", noise, shape)
    check_floating_point("noise", noise)
    check_not_nan("noise", noise)


def check_not_nan(name: str, tensor: Tensor) -> None:
    """Raise a ValueError for NaN, which has no order, where values can be read."""
    if tensor.numel() and can_read_values(tensor) and bool(tensor.amax().isnan()):
        raise ValueError(f"{name}: expected numbers, got NaN")


def check_mask(name: str, mask: Tensor, shape: tuple[int, int]) -> None:
    """Raise a ValueError unless the mask is boolean and has the shape of the patches."""
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
            raise ValueError(f"num_masked: expected at least 0, got {low}")
        if high > patches:
            raise ValueError(f"num_masked: expected at most {patches}, the number of patches, got {high}")
    return num_masked.clamp(0, patches).unsqueeze(1)


def validate_fraction(name: str, fraction: float | Tensor, like: Tensor) -> Tensor:
    """Return a fraction in [0, 1], one number or one per image, as a float64 column on the device of `like`."""
    if isinstance(fraction, Tensor):
        check_shape(name, fraction, (len(like),))
        check_floating_point(name, fraction)
        if can_read_values(fraction) and bool(((fraction < 0) | (fraction > 1) | fraction.isnan()).any()):
            raise ValueError(f"{name}: expected numbers in [0, 1], got {fraction.tolist()}")
        return fraction.to(like.device, torch.float64).unsqueeze(1)
    if not 0 <= fraction <= 1:
        raise ValueError(f"{name}: expected a number in [0, 1], got {fraction}")
    # An addition, not a fill: torch.compile treats a fill value as a constant and recompiles for every new one.
    return torch.zeros(len(like), 1, dtype=torch.float64, device=like.device) + fraction


def validate_coefficients(alpha: float | Tensor, beta: float | Tensor, like: Tensor) -> Tensor:
    """Return [batch, 3]: α, β and 1 - α - β of each image, in float64."""
    first, second = validate_fraction("alpha", alpha, like), validate_fraction("beta", beta, like)
    rest = 1 - first - second
    # 0.7 + 0.3 may differ from 1 by a rounding error, and float32 coefficients by more.
    if can_read_values(rest) and bool((rest < -1e-6).any()):
        raise ValueError(f"alpha + beta: expected at most 1, got {1 - float(rest.min()):g}")
    return torch.cat([first, second, rest.clamp(min=0)], dim=1)
