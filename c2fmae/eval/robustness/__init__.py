"""Robustness: accuracy of classifiers on images whose distribution differs from that of the training data."""
