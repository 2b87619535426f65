"""The estimate of a labelling."""

import re
from pathlib import Path

import pytest

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.labelling.config import LabelConfig
from c2fmae.labelling.describe import describe_labelling
from c2fmae.labelling.dry_run import measure_labelling
from c2fmae.labelling.label import label_images, make_context, open_images
from tests.labelling.simple_labellers import Brightness, write_images


class Licensed(Brightness):
    def describe(self) -> dict[str, object]:
        weights = {"name": "tiny", "sha256": "0123456789abcdef", "licence": "MIT"}
        return {"labeller": "licensed", "detector": weights, "prompts": ["a.", "b."], "rules": {"limit": self.limit}}


def test_a_dry_run_writes_nothing_and_estimates_what_is_written(tmp_path: Path) -> None:
    images, out, config = write_images(tmp_path / "images", 60, broken=[30], dark=[5]), tmp_path / "out", LabelConfig()
    scenes, labellers = open_images(images), [Licensed()]
    lines = measure_labelling(scenes, labellers, out, config, workers=2).splitlines()
    assert not out.exists()
    starts = [line.partition(":")[0] for line in lines]
    assert starts == [
        *("32 images of 60, ms an image", "speed", "time", "peak memory", "disk", "prompts an image"),
        *("without objects", "objects an image", "maps know labels", "licences"),
    ]
    assert re.fullmatch(r".*: read and decode [\d.]+, instance\+semantic maps [\d.]+, encode [\d.]+", lines[0])
    assert re.fullmatch(r"speed: [\d.e+]+ images/s ±\d+%, with 2 threads beside the labellers", lines[1])
    assert re.fullmatch(r"time: .* on 1, .* on 8, .* on 64 of this device", lines[2])
    assert (lines[5], lines[8], lines[9]) == ("prompts an image: 2", "maps know labels: no", "licences: tiny: MIT")
    assert re.fullmatch(r"without objects: \d+%; failed: [01]", lines[6])
    label_images(scenes, labellers, out, config, make_context(config, scenes.info, World()), workers=0, is_quiet=True)
    size = sum(path.stat().st_size for pattern in ("*.tar", "scenes*.jsonl") for path in out.glob(pattern))
    match = re.fullmatch(r"disk: ([\d.]+) KB an image, .* MB for all", lines[4])
    assert match
    assert float(match[1]) * 59 == pytest.approx(size / 1000, rel=0.1)


def test_a_disk_that_is_too_small_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    scenes = open_images(write_images(tmp_path / "images", 3))
    with pytest.raises(UserError, match=r"the shards need .* of disk space.*use --images leave-out"):
        measure_labelling(scenes, [Brightness()], tmp_path / "out", LabelConfig(), workers=0)


@pytest.mark.parametrize(("knows", "text", "num_lines"), [(False, "no", 2), (None, "unknown", 2), (True, "yes", 3)])
def test_the_first_lines_name_weights_and_whether_maps_know_labels(
    tmp_path: Path, knows: bool | None, text: str, num_lines: int
) -> None:
    labeller, config = Licensed(), LabelConfig()
    labeller.maps_know_labels = knows
    context = make_context(config, open_images(write_images(tmp_path, 1)).info, World())
    lines = describe_labelling([labeller], config, context)
    assert lines[0] == ("instance and semantic maps: licensed: tiny (sha256 01234567, MIT), rules.limit=128, 2 prompts")
    assert lines[1] == f"device cpu, fp32, batches of 8, maps at stride 4; maps know labels: {text}"
    assert len(lines) == num_lines
