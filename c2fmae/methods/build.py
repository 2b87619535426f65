"""Building of a method from its config."""

from importlib import import_module
from operator import attrgetter
from typing import overload

import torch

from c2fmae.config.masked_method import MaskedConfig
from c2fmae.config.method import MethodConfig
from c2fmae.core.seeding import derive_seed
from c2fmae.methods.masked import MaskedAutoencoding
from c2fmae.methods.protocol import Method


@overload
def build_method(config: MaskedConfig, *, seed: int = 0) -> MaskedAutoencoding: ...
@overload
def build_method(config: MethodConfig, *, seed: int = 0) -> Method: ...
def build_method(config: MethodConfig, *, seed: int = 0) -> Method:
    """Build a method. The same config and seed give the same weights; the global generator is not used."""
    module, _, name = config.implementation.partition(":")
    build = attrgetter(name)(import_module(module))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "parts"))  # for modules that initialise themselves, as those of plug-ins
        return build(config, seed=seed)  # type: ignore[no-any-return]
