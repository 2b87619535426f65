import pytest

from c2fmae.core.errors import UserError
from c2fmae.data.corruption.names import (
    CORRUPTION_GROUPS,
    CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    SEVERITIES,
    select_corruptions,
)


def test_names_equal_those_of_the_package_in_its_order() -> None:
    imagecorruptions = pytest.importorskip("imagecorruptions")
    assert list(CORRUPTIONS) == imagecorruptions.get_corruption_names("common")
    assert list(EXTRA_CORRUPTIONS) == imagecorruptions.get_corruption_names("validation")
    for name in ("noise", "blur", "weather", "digital"):
        assert list(CORRUPTION_GROUPS[name]) == imagecorruptions.get_corruption_names(name)
    assert SEVERITIES == (1, 2, 3, 4, 5)


def test_corruptions_are_selected_by_name_or_group_in_the_order_of_the_benchmark() -> None:
    assert select_corruptions(["extra", "snow", "noise", "snow"]) == (
        *CORRUPTION_GROUPS["noise"],
        "snow",
        *EXTRA_CORRUPTIONS,
    )
    assert select_corruptions([*CORRUPTION_GROUPS]) == (*CORRUPTIONS, *EXTRA_CORRUPTIONS)
    assert select_corruptions([]) == ()


def test_a_misspelt_corruption_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"^no corruption named 'gausian_noise'. Did you mean 'gaussian_noise'\? Known"):
        select_corruptions(["fog", "gausian_noise"])
