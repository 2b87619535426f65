import numpy as np
import pytest

from c2fmae.data.generated.stuff import STUFF
from c2fmae.data.generated.things import IMPLAUSIBLE_STUFF, MAX_EXTENT, THING_PARTS


def test_every_stuff_is_plausible_for_some_classes_and_every_class_has_implausible_stuff() -> None:
    assert list(IMPLAUSIBLE_STUFF) == list(THING_PARTS)
    assert len(STUFF) >= 8
    assert len(THING_PARTS) >= 10
    for stuff in STUFF:
        assert sum(stuff not in implausible for implausible in IMPLAUSIBLE_STUFF.values()) >= 3
    for implausible in IMPLAUSIBLE_STUFF.values():
        assert len(implausible) >= 2
        assert set(implausible) <= set(STUFF)


@pytest.mark.parametrize("name", THING_PARTS)
def test_no_thing_is_cut_off_by_its_window_at_any_rotation(name: str) -> None:
    axis = np.linspace(-2, 2, 201, dtype=np.float32)
    u, v = np.meshgrid(axis, axis)
    is_inside = np.min([shape(u, v) for shape, _ in THING_PARTS[name]], axis=0) < 0
    assert is_inside.any()
    assert np.hypot(1.14 * u, v)[is_inside].max() < MAX_EXTENT


@pytest.mark.parametrize("name", THING_PARTS)
def test_parts_have_no_holes_where_their_distance_is_singular(name: str) -> None:
    axis = np.linspace(-1.2, 1.2, 49, dtype=np.float32).round(2)  # includes the centres of parts
    u, v = np.meshgrid(axis, axis)
    for shape, _ in THING_PARTS[name]:
        assert np.isfinite(shape(u, v)).all()
        near = [shape(u + du, v + dv) < 0 for du, dv in ((0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01))]
        assert (shape(u, v) < 0)[np.all(near, axis=0)].all()


def test_classes_differ_in_outline() -> None:
    axis = np.linspace(-1.2, 1.2, 97, dtype=np.float32)
    u, v = np.meshgrid(axis, axis)
    insides = [np.min([shape(u, v) for shape, _ in parts], axis=0) < 0 for parts in THING_PARTS.values()]
    for k, inside in enumerate(insides):
        for other in insides[:k]:
            assert (inside & other).sum() / (inside | other).sum() < 0.8
