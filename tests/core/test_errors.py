import pytest

from c2fmae.core.errors import UserError, did_you_mean, unknown_name_error


def test_the_most_similar_name_is_suggested() -> None:
    assert did_you_mean("cosin", ["triangle", "cosine"]) == "Did you mean 'cosine'?"


def test_nothing_is_suggested_if_no_name_is_similar() -> None:
    assert did_you_mean("zebra", ["triangle", "cosine"]) == ""


@pytest.mark.parametrize(
    ("name", "known", "message"),
    [
        ("cosin", ["triangle", "cosine"], "no curve named 'cosin'. Did you mean 'cosine'? Known: cosine, triangle"),
        ("zebra", ["triangle", "cosine"], "no curve named 'zebra'. Known: cosine, triangle"),
        ("zebra", [], "no curve named 'zebra'. Known: none"),
    ],
)
def test_the_error_for_an_unknown_name_lists_all_known_ones(name: str, known: list[str], message: str) -> None:
    error = unknown_name_error("curve", name, known)
    assert isinstance(error, UserError)
    assert str(error) == message
