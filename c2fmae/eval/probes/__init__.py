"""What frozen features are good for: nearest neighbours, linear probes, and what they are to be compared with."""

from c2fmae.eval.probes.attentive_head import AttentiveProbe, AttentiveSetting, fit_attentive
from c2fmae.eval.probes.baselines import colour_encoder, pixel_encoder
from c2fmae.eval.probes.batching import hold_out
from c2fmae.eval.probes.bootstrap import percentile_interval, poisson_weights, replicate_sums
from c2fmae.eval.probes.confusion import confusion, ious, mean_iou, share_right
from c2fmae.eval.probes.features import Features, concatenate, extract, mean_of, photo_encoder
from c2fmae.eval.probes.intervals import wilson
from c2fmae.eval.probes.lars import fit_lars
from c2fmae.eval.probes.linear_heads import Chosen, HeadSetting, choose_head, fit_heads
from c2fmae.eval.probes.logistic_regression import LinearProbe, fit_linear
from c2fmae.eval.probes.nearest_neighbours import QUERIES_AT_ONCE, Neighbours, nearest, vote
from c2fmae.eval.probes.patch_classifier import DenseScores, score_patches
from c2fmae.eval.probes.scores import Scores, accuracy, probe

__all__ = [
    "QUERIES_AT_ONCE",
    "AttentiveProbe",
    "AttentiveSetting",
    "Chosen",
    "DenseScores",
    "Features",
    "HeadSetting",
    "LinearProbe",
    "Neighbours",
    "Scores",
    "accuracy",
    "choose_head",
    "colour_encoder",
    "concatenate",
    "confusion",
    "extract",
    "fit_attentive",
    "fit_heads",
    "fit_lars",
    "fit_linear",
    "hold_out",
    "ious",
    "mean_iou",
    "mean_of",
    "nearest",
    "percentile_interval",
    "photo_encoder",
    "pixel_encoder",
    "poisson_weights",
    "probe",
    "replicate_sums",
    "score_patches",
    "share_right",
    "vote",
    "wilson",
]
