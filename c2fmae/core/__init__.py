"""Foundation of all packages: registry, configs, errors, seeds, runs, and the types that packages share."""
