import hashlib
from pathlib import Path

import pytest
import timm.data

from c2fmae.data.suites import SUITES, resolve_suite
from c2fmae.data.suites.official import imagenet_a_wnids, imagenet_r_wnids, imagenet_wnids
from c2fmae.data.suites.suite import find_suites_with_classes
from tests.data.dataset_files import assert_user_error
from tests.data.suites.official_layouts import IN_BOTH, ONLY_IN_A, ONLY_IN_R


def test_imagenet_classes_are_those_of_timm() -> None:
    info = timm.data.imagenet_info.ImageNetInfo()
    assert imagenet_wnids() == tuple(info.index_to_label_name(index) for index in range(1000))


def test_classes_of_imagenet_a_and_r_differ_and_match_the_indices_of_timm() -> None:
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
def test_class_lists_do_not_depend_on_the_version_of_timm(wnids: tuple[str, ...], digest: str) -> None:
    assert hashlib.sha256(" ".join(wnids).encode()).hexdigest()[:16] == digest


def test_registered_suites_have_the_official_counts() -> None:
    suites = {name: SUITES.get(name) for name in SUITES}
    assert all(suite.name == name for name, suite in suites.items())
    counts = {
        name: (suite.num_images, suite.images_per_class, len(suite.wnids()))
        for name, suite in suites.items()
        if suite.wnids
    }
    assert counts == {
        "imagenet-val": (50_000, 50, 1000),
        "imagenet-a": (7_500, None, 200),
        "imagenet-r": (30_000, None, 200),
        "sketch": (50_889, None, 1000),
        "imagenet-c": (50_000, 50, 1000),
        "imagenet-v2": (10_000, 10, 1000),
        "imagenet-real": (50_000, None, 1000),
        "imagenet-w": (50_000, 50, 1000),
    }
    assert set(suites) - set(counts) == {"custom"}


def test_suites_are_found_by_name_and_alias_and_unknown_ones_are_refused() -> None:
    assert [resolve_suite(name) for name in ("val", "a", "r", "c", "imagenet-sketch", *SUITES)] == [
        "imagenet-val", "imagenet-a", "imagenet-r", "imagenet-c", "sketch", *SUITES,
    ]  # fmt: skip
    assert_user_error(
        lambda: resolve_suite("imagenet-aa"),
        "no suite named 'imagenet-aa'. Did you mean 'imagenet-a'? Known: a, c, custom, imagenet-a, imagenet-c,"
        " imagenet-r, imagenet-real, imagenet-sketch, imagenet-v2, imagenet-val, imagenet-w, r, real, sketch, v2, val,"
        " w",
    )


def test_classes_are_attributed_to_the_suites_with_the_fewest_classes_that_have_them_all() -> None:
    assert find_suites_with_classes({ONLY_IN_A, *IN_BOTH}) == ("imagenet-a",)
    assert find_suites_with_classes({ONLY_IN_R, *IN_BOTH}) == ("imagenet-r",)
    assert find_suites_with_classes({*IN_BOTH}) == ("imagenet-a", "imagenet-r")
    assert find_suites_with_classes({ONLY_IN_A, ONLY_IN_R}) == (
        "imagenet-c", "imagenet-real", "imagenet-v2", "imagenet-val", "imagenet-w", "sketch",
    )  # fmt: skip
    assert find_suites_with_classes({ONLY_IN_A, "cat"}) == find_suites_with_classes(set()) == ()
