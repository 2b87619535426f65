"""Image processors that do not fit their model are errors before the first image."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from c2fmae.core.errors import UserError
from c2fmae.labelling.context import LabellerContext
from c2fmae.labelling.registry import build_labellers

SQUARE_48 = {"height": 48, "width": 48}

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.mark.parametrize(
    ("spec", "changes", "message"),
    [
        (
            "sam3:sam3",
            {"size": SQUARE_48},
            r"to 48×48 pixels \(expected 56×56, as in config.json\)\. Use the processor",
        ),
        ("sam3:sam3", {"do_resize": False}, r"does not resize images \(do_resize: false\)\. Use the processor"),
        ("rf-detr:rf-detr", {"size": {"height": 64, "width": 72}}, r"to 64×72 pixels \(expected multiples of 16, the"),
        ("universal:mask2former", {"pad_size": SQUARE_48}, r"pads images to 48×48 .*Remove pad_size from prepro"),
        ("universal:mask2former", {"size": {"shortest_edge": 64}}, r"size` of its image processor is incomplete"),
        ("universal:mask2former", {"do_resize": False}, r"does not resize images"),
        ("universal:oneformer", {"do_resize": False}, r"does not resize images"),
        ("universal:eomt", {"do_resize": False}, r"does not resize images"),
    ],
)
def test_image_processors_that_do_not_fit_are_refused(
    tiny_model: Callable[[str], Path], tmp_path: Path, spec: str, changes: dict[str, Any], message: str
) -> None:
    name, model = spec.split(":")
    folder = Path(shutil.copytree(tiny_model(model), tmp_path / "model"))
    (path,) = [each for each in folder.glob("*processor_config.json") if '"size"' in each.read_text()]
    config = json.loads(path.read_text())
    config.get("image_processor", config).update(changes)
    path.write_text(json.dumps(config))
    options = {"space": "coco"} if name == "rf-detr" else {}
    with pytest.raises(UserError, match=f"^{folder}: .*{message}"):
        build_labellers(None, f"{name}:{folder}", LabellerContext(), instances_options=options)


def test_an_rf_detr_without_masks_is_refused(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model("rf-detr"), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["RfDetrForObjectDetection"]}))
    with pytest.raises(UserError, match=r"is an RF-DETR without masks\. Use a folder of RF-DETR-Seg$"):
        build_labellers(None, f"rf-detr:{folder}", LabellerContext())


@pytest.mark.parametrize(
    ("semantic", "instance", "option"),
    [("universal:nowhere", None, "semantics.model"), (None, "universal:nowhere", "instances.model")],
)
def test_a_missing_folder_is_named_by_its_setting(semantic: str | None, instance: str | None, option: str) -> None:
    with pytest.raises(UserError, match=f"^{option}: nowhere does not exist"):
        build_labellers(semantic, instance, LabellerContext())
