"""The checker of the run with shape checks: beartype, with an int good enough for a float as it is for mypy."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
