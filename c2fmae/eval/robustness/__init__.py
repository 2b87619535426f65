"""Robustness: how much of what a classifier knows survives on photos of another kind than it learned from."""
