"""Figures of what masking, backbones and pre-trained models do."""
