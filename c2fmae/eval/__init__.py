"""Evaluation of pre-trained models: frozen-feature probes, fine-tuning, robustness, representation analysis, cost."""
