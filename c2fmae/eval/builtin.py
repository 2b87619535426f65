"""The evaluations of this package, each registered where it is defined."""

from c2fmae.eval import cost
from c2fmae.eval.analysis import attention, representation
from c2fmae.eval.evaluation import EVALUATIONS
from c2fmae.eval.probes import attentive, dense, knn, linear

__all__ = ["EVALUATIONS", "attention", "attentive", "cost", "dense", "knn", "linear", "representation"]
