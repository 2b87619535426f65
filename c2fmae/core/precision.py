"""The precision of matrix products in training."""

import platform
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from c2fmae.core.training import StreamPrecisionSetting

Precision = Literal["bf16", "bf16-stream", "fp32"]


def choose_precision(setting: StreamPrecisionSetting, device_type: str) -> Precision:
    """Return a precision, or for `auto` the fastest of the device.

    >>> choose_precision("auto", "cuda"), choose_precision("fp32", "cuda")
    ('bf16', 'fp32')
    """
    if setting != "auto":
        return setting
    return "bf16" if device_type != "cpu" or has_bfloat16_instructions() else "fp32"


def has_bfloat16_instructions() -> bool:
    """Return whether this CPU multiplies bfloat16 itself; others emulate it and take up to 50 times as long."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return not is_x86 or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which products have the precision of their factors. The meta device has no autocast."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
