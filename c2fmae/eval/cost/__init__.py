"""What a model costs: operations, parameters, memory and time, of a backbone and of pre-training."""

from c2fmae.eval.cost.backbone import compute_backbone_cost
from c2fmae.eval.cost.epoch_cost import EpochCost, measure_epoch_costs
from c2fmae.eval.cost.evaluation import CostEvaluation, measure_backbones
from c2fmae.eval.cost.tables import format_backbone_costs, format_epoch_costs

__all__ = [
    "CostEvaluation",
    "EpochCost",
    "compute_backbone_cost",
    "format_backbone_costs",
    "format_epoch_costs",
    "measure_backbones",
    "measure_epoch_costs",
]
