"""Figures of masks, of the attention and features of backbones, and of reconstructions."""
