import pytest

from c2fmae.core.errors import UserError
from c2fmae.core.labels import LabelInfo
from c2fmae.data.suites import identity_label_map
from c2fmae.data.suites.official import imagenet_a_wnids
from c2fmae.eval.robustness.class_matching import ClassMatching, match_classes
from tests.eval.robustness.colour_classifier import IMAGENET_LABELS

TENCH, HEN = IMAGENET_LABELS[0], IMAGENET_LABELS[8]
NO_IDS = "classes have names but no WordNet ids. Add them as `wnid` in the labels of dataset.json"


def matched(
    labels: list[LabelInfo | None], model: list[LabelInfo | None], wnids: tuple[str, ...] | None = None
) -> ClassMatching:
    return match_classes(identity_label_map(tuple(labels)), wnids, model, set_name="the set", model_name="the model")


def accepted(found: ClassMatching) -> list[list[int]]:
    """The accepted logits of each label."""
    return [row.nonzero()[:, 0].tolist() for row in found.accepted]


def names(*words: str) -> list[LabelInfo | None]:
    return [LabelInfo(name=word) for word in words]


def test_classes_are_found_by_wordnet_id_in_any_order() -> None:
    found = matched([HEN, TENCH], list(IMAGENET_LABELS))
    assert accepted(found) == [[8], [0]]
    assert found.columns == (0, 8)
    assert found.missing_names == ()


def test_a_folders_own_name_does_not_matter_where_there_is_a_wordnet_id() -> None:
    named = LabelInfo(name="a fish", wnid=TENCH.wnid)
    assert accepted(matched([named], list(IMAGENET_LABELS))) == [[0]]


def test_names_are_compared_exactly_where_neither_side_has_wordnet_ids() -> None:
    assert accepted(matched(names("cat", "dog"), names("dog", "bird", "cat"))) == [[2], [0]]
    assert matched(names("cat", "Dog"), names("dog", "cat")).missing_names == ("Dog",)


def test_a_list_of_classes_is_asked_for_whether_or_not_there_are_photos_of_them() -> None:
    wnids = imagenet_a_wnids()
    of_set = [label for label in IMAGENET_LABELS if label.wnid == wnids[3]]
    found = matched([*of_set], list(IMAGENET_LABELS), wnids)
    assert len(found.columns) == found.num_requested == 200
    assert accepted(found) == [[IMAGENET_LABELS.index(of_set[0])]]


def test_what_a_model_lacks_is_named_and_has_no_column() -> None:
    found = matched([TENCH, HEN, None], [None, HEN])
    assert accepted(found) == [[], [1], []]
    assert (found.columns, found.num_requested, found.missing_names) == ((1,), 2, (TENCH.name,))


@pytest.mark.parametrize(
    ("labels", "model", "why"),
    [
        (names("cat"), names("dog"), "the model has 'dog' and others, the set 'cat' and others"),
        (
            [TENCH],
            names("tench, Tinca tinca"),
            f"the model's {NO_IDS}",
        ),
        (
            names("tench"),
            [TENCH],
            f"the set's {NO_IDS}",
        ),
    ],
)
def test_nothing_in_common_is_refused(labels: list[LabelInfo | None], model: list[LabelInfo | None], why: str) -> None:
    with pytest.raises(UserError) as caught:
        matched(labels, model)
    assert str(caught.value) == f"the model: has none of the classes of the set: {why}"


def test_a_name_that_a_model_has_twice_does_not_matter_where_it_is_not_asked_for() -> None:
    assert matched(names("dog"), names("crane", "dog", "crane")).columns == (1,)


def test_a_name_that_a_model_has_twice_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        matched(names("crane"), names("crane", "dog", "crane"))
    assert str(caught.value) == (
        "the model: has two classes named 'crane', so predictions on the set are ambiguous. "
        "Give its classes WordNet ids"
    )


def test_a_label_may_accept_several_classes_of_the_model() -> None:
    cat, fox, wolf = (LabelInfo(name=name) for name in ("cat", "fox", "wolf"))
    found = match_classes(
        ((cat,), (fox, wolf)), None, [wolf, None, cat, fox], set_name="the set", model_name="the model"
    )
    assert accepted(found) == [[2], [0, 3]]
    assert (found.columns, found.num_requested) == ((0, 2, 3), 3)
