"""Pictures of what the method does, to be looked at before and after training."""
