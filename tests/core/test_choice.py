"""Choices, `{name, options}`: what is read, what is written, and which options are refused."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import pytest
import yaml

import c2fmae.core.registry
from c2fmae.core.choice import Choice
from c2fmae.core.config import Config
from c2fmae.core.errors import UserError
from c2fmae.core.registry import Registry

Pen = Callable[[float], float]

SHAPES: Registry[Callable[..., object]] = Registry("shape")
PENS: Registry[Pen] = Registry("pen")
for _registry in (SHAPES, PENS):
    c2fmae.core.registry._REGISTRIES.remove(_registry)  # type: ignore[arg-type]  # of this test alone


@PENS.register("ink")
def ink(pressure: float, *, width: int = 2) -> float:
    """Draw lines of even width."""
    return width * pressure


@SHAPES.register("disc")
@dataclass(frozen=True, kw_only=True)
class Disc:
    """A disc."""

    radius: float = 1.0
    pen: Pen = ink


class BoxOptions(Config):
    height: int = 3
    depth: int = 2


@SHAPES.register("box", "A box.", options=BoxOptions)
def make_box(material: str, options: BoxOptions) -> tuple[str, int, int]:
    return material, options.height, options.depth


class PenChoice(Choice):
    name: str = "ink"

    @classmethod
    def registry(cls) -> Registry[Any]:
        return PENS

    def build(self) -> Pen:
        return partial(PENS.get(self.name), **self.keyword_options())


class ShapeChoice(Choice):
    option_types: ClassVar = {Pen: PenChoice}
    name: str = "disc"

    @classmethod
    def registry(cls) -> Registry[Any]:
        return SHAPES


class Drawing(Config):
    shape: ShapeChoice = ShapeChoice()
    seed: int = 0


@pytest.fixture
def drawing() -> Drawing:
    return Drawing.from_dict({}, ["shape.options.radius=2", "shape.options.pen.options.width=5"])


def problems(values: dict[str, Any], *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        Drawing.from_dict(values, overrides, source="drawing")
    return str(caught.value)


def test_a_name_is_short_for_the_name_with_default_options() -> None:
    assert Drawing.from_dict({"shape": "box"}) == Drawing(shape=ShapeChoice(name="box"))
    assert Drawing.from_dict({"shape": "box"}, ["shape.options.height=7"]).shape.options == BoxOptions(height=7)


def test_yaml_lists_all_options_and_gives_an_equal_config(drawing: Drawing) -> None:
    tree = yaml.safe_load(drawing.to_yaml())
    assert tree == {
        "shape": {"name": "disc", "options": {"radius": 2.0, "pen": {"name": "ink", "options": {"width": 5}}}},
        "seed": 0,
    }
    assert Drawing.from_dict(tree) == drawing
    assert yaml.safe_load(Drawing(shape=ShapeChoice(name="box")).to_yaml())["shape"]["options"] == {
        "height": 3,
        "depth": 2,
    }


def test_another_name_can_be_chosen_where_the_given_options_apply() -> None:
    assert Drawing().override(["shape.name=box"]).shape == ShapeChoice(name="box")
    deep = Drawing(shape=ShapeChoice(name="box", options=BoxOptions(depth=9)))
    assert deep.model_dump()["shape"] == {"name": "box", "options": {"depth": 9}}
    assert deep.shape.given_options() == {"depth": 9}
    with pytest.raises(UserError, match="shape.options.depth: shape 'disc' has no such option. Options: radius, pen"):
        deep.override(["shape.name=disc"])


def test_the_entry_is_called_with_its_options(drawing: Drawing) -> None:
    disc = drawing.shape.build()
    assert isinstance(disc, Disc)
    assert (disc.radius, disc.pen(0.5)) == (2, 2.5)
    assert ShapeChoice(name="box", options={"height": 1}).instantiate("paper") == ("paper", 1, 2)


def test_all_problems_are_reported_with_their_keys() -> None:
    values = {"shape": {"options": {"radios": 3, "pen": {"options": {"widht": 1, "width": "wide"}}}}}
    assert problems(values, "seed=x").splitlines() == [
        "drawing: 4 problems",
        "  shape.options.pen.options.width: input should be a valid integer, unable to parse string as an integer, "
        "got 'wide'",
        "  shape.options.pen.options.widht: pen 'ink' has no such option. Did you mean 'width'?",
        "  shape.options.radios: shape 'disc' has no such option. Did you mean 'radius'?",
        "  seed: input should be a valid integer, unable to parse string as an integer, got 'x'",
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("dics", "shape.name: no shape named 'dics'. Did you mean 'disc'? Known: box, disc"),
        ({"name": "box", "options": {"radius": 1}}, "shape.options.radius: shape 'box' has no such option. Options: "),
        ({"nmae": "box"}, "shape.nmae: no such setting. Did you mean 'name'?"),
        (3, "shape: expected a mapping of settings (key: value), got 3"),
        ({"options": 3}, "shape.options: expected a mapping of settings (key: value), got 3"),
        ({"options": {"radius": float("inf")}}, "shape.options.radius: input should be a finite number, got inf"),
    ],
)
def test_invalid_choices_are_rejected(value: object, message: str) -> None:
    assert problems({"shape": value}).startswith(f"drawing: {message}")


def test_choices_are_pickled_with_the_options_that_were_given() -> None:
    """So that they can be sent to processes that data is loaded in."""
    for options in ({}, {"radius": 2.0}, {"pen": {"name": "ink", "options": {"width": 5}}}):
        drawing = Drawing.from_dict({"shape": {"name": "disc", "options": options}})
        again = pickle.loads(pickle.dumps(drawing))
        assert again == drawing
        assert again.shape.given_options() == drawing.shape.given_options()
    box = Drawing.from_dict({"shape": {"name": "box", "options": {"depth": 4}}})
    assert pickle.loads(pickle.dumps(box)).shape.given_options() == {"depth": 4}
