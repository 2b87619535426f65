"""The evaluations of this package, each registered where it is defined."""

from c2fmae.eval import attention, cost, knn  # noqa: F401
from c2fmae.eval.evaluation import EVALUATIONS

__all__ = ["EVALUATIONS"]
