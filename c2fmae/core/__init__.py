"""What all parts stand on: registry, configs, errors, seeds, and the types the wings meet in."""
