"""Labellers: models and algorithms that make the semantic and instance maps of images, and the command that runs them.

Importing this package imports neither torch nor the packages that labellers need.
"""
