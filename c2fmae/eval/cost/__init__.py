"""Cost of a model: parameters, operations, memory and time, of a backbone and of an epoch of pre-training."""
