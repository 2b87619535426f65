"""Corrupted image sets in the layout of ImageNet-C."""
