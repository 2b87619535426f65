"""Configs of pre-training: everything that recipes, YAML files and `--set` can change.

No module here imports torch. Registries are imported inside the validators and build methods that need them.
"""
