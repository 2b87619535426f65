"""Analyses of a backbone without any task: where it attends, and what its features are like."""
