"""Fine-tuning for detection and instance segmentation, tests of detectors, and their results."""
