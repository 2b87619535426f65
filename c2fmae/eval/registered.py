"""The evaluations of this package, each registered where it is defined."""

from c2fmae.eval import attention, attentive, cost, dense, knn, linear, representation  # noqa: F401
from c2fmae.eval.evaluation import EVALUATIONS

__all__ = ["EVALUATIONS"]
