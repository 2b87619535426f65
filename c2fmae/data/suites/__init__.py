"""Evaluation sets for robustness: a registry of suites, their layouts, classes, label maps and checks.

>>> from c2fmae.data.suites import SUITES
>>> print(*SUITES)
custom imagenet-a imagenet-c imagenet-r imagenet-real imagenet-v2 imagenet-val imagenet-w sketch
"""

from c2fmae.data.suites import official  # registers its suites
from c2fmae.data.suites.label_map import LabelMap, find_accepted_columns, identity_label_map
from c2fmae.data.suites.shifted_set import Cell, ShiftedSet
from c2fmae.data.suites.suite import (
    CUSTOM,
    SUITES,
    Layout,
    Suite,
    SuiteCheckReport,
    check_suite,
    open_shifted_set,
    resolve_suite,
)

__all__ = [
    "CUSTOM",
    "SUITES",
    "Cell",
    "LabelMap",
    "Layout",
    "ShiftedSet",
    "Suite",
    "SuiteCheckReport",
    "check_suite",
    "find_accepted_columns",
    "identity_label_map",
    "official",
    "open_shifted_set",
    "resolve_suite",
]
