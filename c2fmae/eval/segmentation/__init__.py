"""Fine-tuning for semantic segmentation, tests of segmenters, and their results."""
