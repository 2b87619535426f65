"""The evaluations of this package. Importing them needs no torch."""

from c2fmae.eval.analysis import config as analysis
from c2fmae.eval.classification import evaluation as classification
from c2fmae.eval.cost import config as cost
from c2fmae.eval.detection import evaluation as detection
from c2fmae.eval.evaluation import EVALUATIONS
from c2fmae.eval.probes import config as probes
from c2fmae.eval.robustness import config as robustness
from c2fmae.eval.segmentation import evaluation as segmentation

__all__ = ["EVALUATIONS", "analysis", "classification", "cost", "detection", "probes", "robustness", "segmentation"]
