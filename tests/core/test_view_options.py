from typing import Any

import pytest

from c2fmae.core.errors import UserError
from c2fmae.core.view_options import ColourOptions, ViewOptions


def test_the_default_colour_options_change_nothing() -> None:
    options = ColourOptions()
    assert not any(options.jitter)
    assert not any((options.grey_chance, options.blur_chance, options.solarise_chance))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"scale": (0.8, 0.4)}, "scale: expected two ascending numbers, got 0.8 and 0.4. Swap them"),
        (
            {"crop": "main", "scale": (0.4, 0.8)},
            "scale: needs crop 'own', got crop 'main'. Remove scale, or set crop to 'own'",
        ),
        (
            {"shift": 31},
            "shift: expected a number above 0 with crop 'shifted' and 0 with others, got 31 with 'own'. Change one of"
            " the two",
        ),
        (
            {"crop": "shifted"},
            "shift: expected a number above 0 with crop 'shifted' and 0 with others, got 0 with 'shifted'. Change one"
            " of the two",
        ),
        (
            {"crop": "shifted", "shift": 31, "size": (96, 96)},
            "size: shifted views have the size of the main view. Remove size",
        ),
        (
            {"colour": {"blur_sigma": (2.0, 0.1)}},
            "colour: blur_sigma: expected two ascending numbers, got 2 and 0.1. Swap them",
        ),
        (
            {"colour": {"jitter": (0.4, 0.4, 0.4, 0.6)}},
            "colour.jitter.3: input should be less than or equal to 0.5, got 0.6",
        ),
    ],
)
def test_options_that_exclude_each_other_are_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError) as caught:
        ViewOptions.from_dict(values)
    assert str(caught.value) == f"ViewOptions: {problem}"
