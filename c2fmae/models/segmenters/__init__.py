"""Semantic segmentation: a backbone with a head that predicts the class of every pixel."""
