"""Labellers are built from the text of an option, and errors name everything that is wrong."""

from c2fmae.labelling.context import LabellerContext
from c2fmae.labelling.registry import build_labellers

CONTEXT = LabellerContext()


def test_a_registered_name_takes_options() -> None:
    (labeller,) = build_labellers(None, "regions", CONTEXT, instances_options={"scale": 100})
    assert labeller.granularities == {"instance"}
    assert labeller.describe()["scale"] == 100
