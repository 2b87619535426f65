import hashlib
from pathlib import Path

import pytest
import timm.data

from c2fmae.data.suites.official import (
    OFFICIAL_SETS,
    SUITE_NAMES,
    guess_suite,
    imagenet_a_wnids,
    imagenet_r_wnids,
    imagenet_wnids,
    resolve_suite,
)
from tests.data.dataset_files import assert_user_error
from tests.data.suites.official_layouts import IN_BOTH, ONLY_IN_A, ONLY_IN_R


def test_the_thousand_are_timms() -> None:
    info = timm.data.imagenet_info.ImageNetInfo()
    assert imagenet_wnids() == tuple(info.index_to_label_name(index) for index in range(1000))


def test_the_two_lists_of_200_differ_and_are_those_of_timms_indices() -> None:
    for name, wnids in (("imagenet_a", imagenet_a_wnids()), ("imagenet_r", imagenet_r_wnids())):
        path = Path(timm.data.__path__[0]) / f"_info/{name}_indices.txt"
        assert [imagenet_wnids().index(wnid) for wnid in wnids] == [int(index) for index in path.read_text().split()]
        assert len(set(wnids)) == 200
    assert len({*imagenet_a_wnids()} & {*imagenet_r_wnids()}) == 86


@pytest.mark.parametrize(
    ("wnids", "digest"),
    [
        (imagenet_wnids(), "791ce0333040dd24"),
        (imagenet_a_wnids(), "ff8c384504d3ec59"),
        (imagenet_r_wnids(), "354baa0a46566aa6"),
    ],
)
def test_the_lists_are_these_whatever_timm_is_installed(wnids: tuple[str, ...], digest: str) -> None:
    assert hashlib.sha256(" ".join(wnids).encode()).hexdigest()[:16] == digest


def test_the_official_counts() -> None:
    assert {kind: (of.num_images, of.images_per_class, len(of.wnids())) for kind, of in OFFICIAL_SETS.items()} == {
        "imagenet-val": (50_000, 50, 1000),
        "imagenet-a": (7_500, None, 200),
        "imagenet-r": (30_000, None, 200),
        "sketch": (50_889, None, 1000),
        "imagenet-c": (50_000, 50, 1000),
    }


def test_kinds_have_short_names_and_others_are_refused() -> None:
    assert [resolve_suite(name) for name in ("val", "a", "r", "c", *SUITE_NAMES)] == [
        "imagenet-val", "imagenet-a", "imagenet-r", "imagenet-c", *SUITE_NAMES,
    ]  # fmt: skip
    assert_user_error(
        lambda: resolve_suite("imagenet-x"),
        "no kind of set named 'imagenet-x'. Did you mean 'imagenet-r'? Known: a, c, custom, imagenet-a, imagenet-c,"
        " imagenet-r, imagenet-sketch, imagenet-val, r, sketch, val",
    )


def test_a_set_looks_like_the_smallest_that_has_all_of_its_classes() -> None:
    assert guess_suite({ONLY_IN_A, *IN_BOTH}) == "imagenet-a"
    assert guess_suite({ONLY_IN_R, *IN_BOTH}) == "imagenet-r"
    assert guess_suite({ONLY_IN_A, ONLY_IN_R}) == "imagenet-val"
    assert guess_suite(set()) is None
