"""The labellers of this package. Importing this module registers them."""

from c2fmae.labelling import region_labeller
from c2fmae.labelling.registry import LABELLERS

__all__ = ["LABELLERS", "region_labeller"]
