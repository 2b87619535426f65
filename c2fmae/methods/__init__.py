"""What joins a masking policy, a model and its losses into one training step. Nothing here yet."""
