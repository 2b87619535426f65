"""Fine-tuning: a classifier on a pre-trained ViT, with the recipes of the papers or your own."""
