import pytest

from c2fmae.core.errors import UserError
from c2fmae.core.text import slugify
from c2fmae.models.backbones.load_report import LoadReport, check_tensor_names


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("runs/first", "first"),
        ("/data/tiny imagenet/", "tiny-imagenet"),
        ("/data/voc/train", "voc-train"),
        ("voc/train-*.tar", "voc-train.tar"),
        ("trains", "trains"),
        ("timm:vit_tiny_patch16_224@weights/official.pth", "timm-vit-tiny-patch16-224-official.pth"),
        ("https://example.org/data/pack-{000..012}.tar", "pack-000..012.tar"),
        ("..", ""),
        ("a" * 5000, "a" * 60),
    ],
)
def test_directory_names_are_short_and_readable(source: str, expected: str) -> None:
    assert slugify("knn", source) == "-".join(filter(None, ["knn", expected]))


def test_one_tensor_is_no_tensors() -> None:
    assert str(LoadReport(source="a.pth", loaded=["head"])) == "a.pth: 1 tensor loaded"
    with pytest.raises(UserError, match=r"^a.pth: 1 missing tensor \(head\) and 2 unexpected tensors \(b, c\)"):
        check_tensor_names("a.pth", ["head"], ["b", "c"], [])
