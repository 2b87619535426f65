"""The labellers of this package. Importing this module registers them."""

from c2fmae.labelling import clusters, cuts, grounded, ready_maps, region_labeller, rf_detr, sam3, trained, universal
from c2fmae.labelling.registry import LABELLERS

__all__ = [
    "LABELLERS",
    "clusters",
    "cuts",
    "grounded",
    "ready_maps",
    "region_labeller",
    "rf_detr",
    "sam3",
    "trained",
    "universal",
]
