"""What a model costs: operations, parameters, memory and time, of a backbone and of pre-training."""

from c2fmae.eval.cost.backbone_cost import backbone_cost
from c2fmae.eval.cost.epoch_cost import EpochCost, relative_to_mae
from c2fmae.eval.cost.evaluation import CostEvaluation, compare_backbones
from c2fmae.eval.cost.tables import backbone_table, epoch_table

__all__ = [
    "CostEvaluation",
    "EpochCost",
    "backbone_cost",
    "backbone_table",
    "compare_backbones",
    "epoch_table",
    "relative_to_mae",
]
