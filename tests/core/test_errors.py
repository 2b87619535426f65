import pytest

from c2fmae.core.errors import UserError, did_you_mean, unknown_name_error


def test_the_nearest_name_is_suggested() -> None:
    assert did_you_mean("cosin", ["triangle", "cosine"]) == "Did you mean 'cosine'?"


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    assert did_you_mean("zebra", ["triangle", "cosine"]) == ""


@pytest.mark.parametrize(
    ("name", "known", "message"),
    [
        ("cosin", ["triangle", "cosine"], "no curve named 'cosin'. Did you mean 'cosine'? Known: cosine, triangle"),
        ("zebra", ["triangle", "cosine"], "no curve named 'zebra'. Known: cosine, triangle"),
        ("zebra", [], "no curve named 'zebra'. Known: none"),
    ],
)
def test_an_unknown_name_is_answered_with_all_that_are_known(name: str, known: list[str], message: str) -> None:
    error = unknown_name_error("curve", name, known)
    assert isinstance(error, UserError)
    assert str(error) == message
