"""Calls of compiled modules without compilation."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def uncompiled(module: nn.Module) -> Iterator[None]:
    """Call a module as it is, for inputs of many sizes: each of them would be compiled for itself."""
    compiled_call, module._compiled_call_impl = module._compiled_call_impl, None
    try:
        yield
    finally:
        module._compiled_call_impl = compiled_call
