"""Analyses of a backbone without a task: its attention, and the statistics of its features."""
