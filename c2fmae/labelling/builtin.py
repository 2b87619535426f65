"""The labellers of this package. Importing this module registers them."""

from c2fmae.labelling import grounded, ready_maps, region_labeller, trained, universal
from c2fmae.labelling.registry import LABELLERS

__all__ = ["LABELLERS", "grounded", "ready_maps", "region_labeller", "trained", "universal"]
