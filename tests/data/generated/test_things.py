import numpy as np
import pytest

from c2fmae.data.generated.stuff import STUFF
from c2fmae.data.generated.things import IMPLAUSIBLE_STUFF, MAX_EXTENT, THING_PARTS


def test_every_stuff_is_home_to_some_kinds_and_every_kind_has_strangers() -> None:
    assert list(IMPLAUSIBLE_STUFF) == list(THING_PARTS)
    assert len(STUFF) >= 8
    assert len(THING_PARTS) >= 10
    for stuff in STUFF:
        assert sum(stuff not in strangers for strangers in IMPLAUSIBLE_STUFF.values()) >= 3
    for strangers in IMPLAUSIBLE_STUFF.values():
        assert len(strangers) >= 2
        assert set(strangers) <= set(STUFF)


@pytest.mark.parametrize("kind", THING_PARTS)
def test_no_kind_is_cut_off_by_its_window_however_it_is_turned(kind: str) -> None:
    axis = np.linspace(-2, 2, 201, dtype=np.float32)
    u, v = np.meshgrid(axis, axis)
    is_inside = np.min([shape(u, v) for shape, _ in THING_PARTS[kind]], axis=0) < 0
    assert is_inside.any()
    assert np.hypot(1.14 * u, v)[is_inside].max() < MAX_EXTENT


@pytest.mark.parametrize("kind", THING_PARTS)
def test_parts_have_no_holes_where_their_distance_is_singular(kind: str) -> None:
    axis = np.linspace(-1.2, 1.2, 49, dtype=np.float32).round(2)  # centres of parts lie on such places
    u, v = np.meshgrid(axis, axis)
    for shape, _ in THING_PARTS[kind]:
        assert np.isfinite(shape(u, v)).all()
        near = [shape(u + du, v + dv) < 0 for du, dv in ((0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01))]
        assert (shape(u, v) < 0)[np.all(near, axis=0)].all()


def test_kinds_differ_in_outline() -> None:
    axis = np.linspace(-1.2, 1.2, 97, dtype=np.float32)
    u, v = np.meshgrid(axis, axis)
    insides = [np.min([shape(u, v) for shape, _ in parts], axis=0) < 0 for parts in THING_PARTS.values()]
    for k, one in enumerate(insides):
        for other in insides[:k]:
            assert (one & other).sum() / (one | other).sum() < 0.8
