"""Patches and positions, embeddings, encoder, decoders, targets and losses. Nothing here yet."""
