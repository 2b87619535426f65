"""The checker of the run with shape checks: beartype, with an int good enough for a float as it is for mypy."""

from beartype import BeartypeConf, beartype

typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))
