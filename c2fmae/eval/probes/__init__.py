"""What frozen features are good for: nearest neighbours, linear probes, and what they are to be compared with."""

from c2fmae.eval.probes.baselines import colour_encoder, pixel_encoder
from c2fmae.eval.probes.batches import hold_out
from c2fmae.eval.probes.dense import DenseScores, score_patches
from c2fmae.eval.probes.features import Features, concatenate, extract, mean_of, photo_encoder
from c2fmae.eval.probes.heads import Chosen, HeadSetting, choose_head, fit_heads
from c2fmae.eval.probes.intervals import wilson
from c2fmae.eval.probes.linear import LinearProbe, fit_linear
from c2fmae.eval.probes.neighbours import QUERIES_AT_ONCE, Neighbours, nearest, vote
from c2fmae.eval.probes.scores import Scores, accuracy, probe

__all__ = [
    "QUERIES_AT_ONCE",
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
    "extract",
    "fit_heads",
    "fit_linear",
    "hold_out",
    "mean_of",
    "nearest",
    "photo_encoder",
    "pixel_encoder",
    "probe",
    "score_patches",
    "vote",
    "wilson",
]
