"""What a model costs: operations, parameters, memory and time, of a backbone and of pre-training."""

from c2fmae.eval.cost.backbone import backbone_cost
from c2fmae.eval.cost.count import Cost, Count, Part, by_fvcore, by_torch
from c2fmae.eval.cost.evaluation import CostEvaluation, compare_backbones
from c2fmae.eval.cost.pretraining import cost_of
from c2fmae.eval.cost.relative import EpochCost, relative_to_mae
from c2fmae.eval.cost.table import backbone_table, epoch_table

__all__ = [
    "Cost",
    "CostEvaluation",
    "Count",
    "EpochCost",
    "Part",
    "backbone_cost",
    "backbone_table",
    "by_fvcore",
    "by_torch",
    "compare_backbones",
    "cost_of",
    "epoch_table",
    "relative_to_mae",
]
