import pytest

from c2fmae.core.errors import UserError
from c2fmae.core.labels import LabelInfo
from c2fmae.data.suites import identity_label_map
from c2fmae.data.suites.official import imagenet_a_wnids
from c2fmae.eval.robustness.class_matching import ClassMatching, match_classes
from tests.eval.robustness.colour_classifier import IMAGENET_LABELS

TENCH, HEN = IMAGENET_LABELS[0], IMAGENET_LABELS[8]
NO_IDS = "classes have names but no WordNet ids. Add them as `wnid` in the labels of dataset.json"


def match(
    labels: list[LabelInfo | None], model: list[LabelInfo | None], wnids: tuple[str, ...] | None = None
) -> ClassMatching:
    return match_classes(identity_label_map(tuple(labels)), wnids, model, set_name="the set", model_name="the model")


def list_accepted(matching: ClassMatching) -> list[list[int]]:
    """Return the accepted logits of each label."""
    return [row.nonzero()[:, 0].tolist() for row in matching.accepted]


def make_labels(*names: str) -> list[LabelInfo | None]:
    return [LabelInfo(name=name) for name in names]


def test_classes_are_matched_by_wordnet_id_in_any_order() -> None:
    matching = match([HEN, TENCH], list(IMAGENET_LABELS))
    assert list_accepted(matching) == [[8], [0]]
    assert matching.columns == (0, 8)
    assert matching.missing_names == ()


def test_names_of_classes_with_wordnet_ids_are_ignored() -> None:
    named = LabelInfo(name="a fish", wnid=TENCH.wnid)
    assert list_accepted(match([named], list(IMAGENET_LABELS))) == [[0]]


def test_names_are_compared_exactly_if_neither_side_has_wordnet_ids() -> None:
    assert list_accepted(match(make_labels("cat", "dog"), make_labels("dog", "bird", "cat"))) == [[2], [0]]
    assert match(make_labels("cat", "Dog"), make_labels("dog", "cat")).missing_names == ("Dog",)


def test_classes_of_the_protocol_are_requested_without_images_of_them() -> None:
    wnids = imagenet_a_wnids()
    labels = [label for label in IMAGENET_LABELS if label.wnid == wnids[3]]
    matching = match([*labels], list(IMAGENET_LABELS), wnids)
    assert len(matching.columns) == matching.num_requested == 200
    assert list_accepted(matching) == [[IMAGENET_LABELS.index(labels[0])]]


def test_missing_classes_are_named_and_have_no_column() -> None:
    matching = match([TENCH, HEN, None], [None, HEN])
    assert list_accepted(matching) == [[], [1], []]
    assert (matching.columns, matching.num_requested, matching.missing_names) == ((1,), 2, (TENCH.name,))


@pytest.mark.parametrize(
    ("labels", "model", "reason"),
    [
        (make_labels("cat"), make_labels("dog"), "the model has 'dog' and others, the set 'cat' and others"),
        (
            [TENCH],
            make_labels("tench, Tinca tinca"),
            f"the model's {NO_IDS}",
        ),
        (
            make_labels("tench"),
            [TENCH],
            f"the set's {NO_IDS}",
        ),
    ],
)
def test_disjoint_classes_are_rejected(
    labels: list[LabelInfo | None], model: list[LabelInfo | None], reason: str
) -> None:
    with pytest.raises(UserError) as caught:
        match(labels, model)
    assert str(caught.value) == f"the model: has none of the classes of the set: {reason}"


def test_duplicate_names_of_classes_that_are_not_requested_are_ignored() -> None:
    assert match(make_labels("dog"), make_labels("crane", "dog", "crane")).columns == (1,)


def test_duplicate_names_of_requested_classes_are_rejected() -> None:
    with pytest.raises(UserError) as caught:
        match(make_labels("crane"), make_labels("crane", "dog", "crane"))
    assert str(caught.value) == (
        "the model: has two classes named 'crane', so predictions on the set are ambiguous. "
        "Give its classes WordNet ids"
    )


def test_label_may_accept_several_classes_of_the_model() -> None:
    cat, fox, wolf = (LabelInfo(name=name) for name in ("cat", "fox", "wolf"))
    matching = match_classes(
        ((cat,), (fox, wolf)), None, [wolf, None, cat, fox], set_name="the set", model_name="the model"
    )
    assert list_accepted(matching) == [[2], [0, 3]]
    assert (matching.columns, matching.num_requested) == ((0, 2, 3), 3)
