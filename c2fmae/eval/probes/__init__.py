"""Probes of frozen features: nearest neighbours and linear, dense and attentive classifiers."""
