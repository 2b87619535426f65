"""The precision of forward passes."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from c2fmae.labelling.context import LabellerContext


def make_autocast(context: LabellerContext) -> Callable[[], AbstractContextManager[Any]]:
    """Return a function that returns the context of a forward pass on the device, in the precision of the command."""
    if context.precision == "fp32":
        return nullcontext
    return lambda: torch.autocast(torch.device(context.device).type, torch.bfloat16)
