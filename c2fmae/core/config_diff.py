"""Differences between two configs."""

import json
from collections.abc import Mapping
from typing import Any


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return a line for each setting that differs between two nested mappings, by dotted key.

    >>> config_differences({"training": {"lr": 0.1, "steps": 10}}, {"training": {"lr": 0.2, "steps": 10}, "seed": 1})
    ['training.lr: 0.1 → 0.2', 'seed: (not set) → 1']
    """
    old_values, new_values = flatten_settings(old), flatten_settings(new)
    changed = [
        key
        for key in old_values | new_values
        if key not in old_values or key not in new_values or old_values[key] != new_values[key]
    ]
    return [f"{key}: {_format_setting(old_values, key)} → {_format_setting(new_values, key)}" for key in changed]


def flatten_settings(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the settings of nested mappings by dotted key, with lists instead of tuples."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten_settings(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _tuples_to_lists(value)
    return flat


def _tuples_to_lists(value: Any) -> Any:
    return [_tuples_to_lists(item) for item in value] if isinstance(value, tuple | list) else value


def _format_setting(flat: Mapping[str, Any], key: str) -> str:
    if key not in flat:
        return "(not set)"
    return flat[key] if isinstance(flat[key], str) else json.dumps(flat[key], ensure_ascii=False)
