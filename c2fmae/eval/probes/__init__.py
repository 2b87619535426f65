"""What frozen features are good for: nearest neighbours, linear probes, and what they are to be compared with."""

from c2fmae.eval.intervals import wilson_interval
from c2fmae.eval.probes.attentive_head import AttentiveProbe, AttentiveProbeSetting, fit_attentive_probe
from c2fmae.eval.probes.baselines import make_colour_encoder, make_pixel_encoder
from c2fmae.eval.probes.batching import split_training_validation
from c2fmae.eval.probes.bootstrap import percentile_interval, poisson_weights, replicate_sums
from c2fmae.eval.probes.confusion import class_ious, confusion_matrices, mean_iou, overall_accuracy
from c2fmae.eval.probes.features import PatchFeatures, encode_scenes, make_image_encoder, pool_concatenated, pool_mean
from c2fmae.eval.probes.lars import fit_lars_probe
from c2fmae.eval.probes.linear_heads import ChosenHead, LinearHeadSetting, choose_linear_head, fit_linear_heads
from c2fmae.eval.probes.logistic_regression import LinearProbe, fit_logistic_regression
from c2fmae.eval.probes.nearest_neighbours import QUERIES_PER_BLOCK, Neighbours, find_nearest, vote_labels
from c2fmae.eval.probes.patch_classifier import PatchScores, score_patches
from c2fmae.eval.probes.scores import ProbeScores, accuracy, run_probes

__all__ = [
    "QUERIES_PER_BLOCK",
    "AttentiveProbe",
    "AttentiveProbeSetting",
    "ChosenHead",
    "LinearHeadSetting",
    "LinearProbe",
    "Neighbours",
    "PatchFeatures",
    "PatchScores",
    "ProbeScores",
    "accuracy",
    "choose_linear_head",
    "class_ious",
    "confusion_matrices",
    "encode_scenes",
    "find_nearest",
    "fit_attentive_probe",
    "fit_lars_probe",
    "fit_linear_heads",
    "fit_logistic_regression",
    "make_colour_encoder",
    "make_image_encoder",
    "make_pixel_encoder",
    "mean_iou",
    "overall_accuracy",
    "percentile_interval",
    "poisson_weights",
    "pool_concatenated",
    "pool_mean",
    "replicate_sums",
    "run_probes",
    "score_patches",
    "split_training_validation",
    "vote_labels",
    "wilson_interval",
]
