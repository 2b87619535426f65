"""Official and self-made image sets for robustness: their layouts, classes and checks."""
