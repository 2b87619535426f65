"""Target of a prediction."""

from typing import Any

from c2fmae.core.choice import Choice
from c2fmae.core.registry import Registry


class TargetConfig(Choice):
    """The target that a head predicts for each hidden patch, and its options."""

    @classmethod
    def registry(cls) -> Registry[Any]:
        """Return the registry of targets."""
        from c2fmae.models.targets import TARGETS

        return TARGETS
