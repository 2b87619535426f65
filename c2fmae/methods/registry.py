"""Methods by name."""

from collections.abc import Callable

from c2fmae.core.registry import Registry
from c2fmae.methods.config import MethodConfig

METHODS: Registry[Callable[[], MethodConfig]] = Registry("method")
