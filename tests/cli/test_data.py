"""The data commands in processes of their own."""

import json
from pathlib import Path

import numpy as np
import pytest
from c2fmae_cli.data import data as data_commands
from c2fmae_cli.data_create import IMPORTS
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from c2fmae.core.config import list_settings
from c2fmae.data.importers import IMPORTERS
from c2fmae.data.pack import PackConfig
from c2fmae.data.suites import SUITES, Suite
from c2fmae.data.suites.labelled import LabelledImages
from tests.cli.session import run_commands
from tests.data.objects.layouts import annotation, write_coco, write_yolo
from tests.data.suites.official_layouts import IN_BOTH, class_files, grid_files, write_as_folder, write_as_tar

pytestmark = pytest.mark.unchecked


def write_tree(root: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for name in ("rgb", "semantic", "instance"):
        (root / name).mkdir(parents=True)
    for i in range(count):
        Image.fromarray(rng.integers(256, size=(40, 50, 3), dtype=np.uint8)).save(root / f"rgb/{i}.jpg")
        for name in ("semantic", "instance"):
            Image.fromarray(rng.integers(3, size=(40, 50), dtype=np.uint8)).save(root / f"{name}/{i}.png")


def test_a_folder_with_a_broken_file_is_checked_packed_and_drawn(tmp_path: Path) -> None:
    write_tree(tmp_path / "my tree", 5)
    (tmp_path / "my tree/semantic/3.png").write_bytes(b"")
    outcomes, errors = run_commands(
        "data check 'my tree'",
        "data pack 'my tree' packed",
        "data check 'my tree' --fix-list lists/good.txt",
        "data pack 'my tree' packed2 --keys lists/good.txt --label-stride 2 --short-side 20 --set shard_size=3",
        "data preview packed2 --scenes 3",
        "data stats packed2",
        "data pack 'my tree' packed2 --keys lists/good.txt --set shard_size=3",
        "data pack 'my tree' packed3 --label-stride 0 --set nmae=x",
        "data pack 'my tree' packed3 --keys none.txt",
        cwd=tmp_path,
    )
    problem = "my tree/semantic/3.png: is not an id map. Store it as a PNG of one channel with 8 or 16 bits"
    checked, packed_broken, listed, packed, preview, stats, *refused = outcomes
    assert checked.exit_code == 1
    assert checked.lines[0] == f"problem: {problem}"
    assert checked.lines[1].split() == ["id", "class", "pixels", "images"]
    assert checked.lines[-2:] == [
        "1 problem, 4 valid samples",
        "next: c2fmae data check 'my tree' --fix-list good.txt  # lists the valid samples, for data pack",
    ]
    assert packed_broken.exit_code == 2
    assert f"error: {problem}\n  To pack the others, list the valid samples with `c2fmae data check SOURCE" in errors
    assert listed.lines[-2:] == [
        "wrote lists/good.txt",
        "next: c2fmae data pack 'my tree' OUT --keys lists/good.txt  # packs the valid samples",
    ]
    assert (tmp_path / "lists/good.txt").read_text() == "0\n1\n2\n4\n"
    megabytes = sum(path.stat().st_size for path in (tmp_path / "packed2").glob("*.tar")) / 1e6
    assert packed == (
        0,
        [f"wrote packed2: 4 scenes in 2 shards, {megabytes:.1f} MB", "next: c2fmae data preview packed2"],
    )
    assert preview == (0, ["wrote preview.png", "next: c2fmae data stats packed2"])
    assert stats.exit_code == 0
    assert stats.lines[-2:] == ["wrote stats.png", "next: c2fmae data preview packed2"]
    with Image.open(tmp_path / "stats.png") as figure:
        assert figure.width > 800
    assert [outcome.exit_code for outcome in refused] == [2, 2, 2]
    assert "this pack was started with label_stride 2, now 4; short_side 20, now None. Pack the same" in errors
    assert "error: data pack: 2 problems\n  label_stride: input should be greater than or equal to 1, got 0\n" in errors
    assert "  nmae: no such setting. Did you mean 'name'?\n" in errors
    assert "error: none.txt: cannot be read: No such file or directory. Check the path" in errors
    assert not (tmp_path / "packed3").exists()


def test_maps_are_compared_with_true_ones(tmp_path: Path) -> None:
    write_tree(tmp_path / "truth", 4)
    outcomes, errors = run_commands(
        "data pack truth maps --label-stride 4",
        "data compare maps truth --limit 3 --out pages/quality.html",
        "data compare maps generated",
        "data compare maps truth --out page.png",
        cwd=tmp_path,
    )
    _, compared, *refused = outcomes
    assert compared.exit_code == 0
    assert compared.lines[0] == "3 images with semantic and instance maps in both sets"
    assert compared.lines[1].split() == ["unit", "count", "maps", "full", "image", "middle", "box", "regions"]
    assert any(line.startswith("objects: average best overlap ") for line in compared.lines)
    assert compared.lines[-2:] == [
        "wrote pages/quality.html and pages/quality.json",
        "next: c2fmae data preview maps",
    ]
    assert "Images with the lowest best overlap" in (tmp_path / "pages/quality.html").read_text()
    assert [outcome.exit_code for outcome in refused] == [2, 2]
    assert "the two sets have no image in common: a key of the maps is '0', one of the truth is '00000000'" in errors
    assert "error: 'page.png': not the name of a page. Use a name that ends in .html" in errors


def test_generated_scenes_are_packed(tmp_path: Path) -> None:
    generate = "data generate out --count 3 --size 32 --difficulty easy --seed"
    (first, repeated, *refused), errors = run_commands(
        f"{generate} 1", f"{generate} 1", f"{generate} 2", "data import voc none out2", cwd=tmp_path
    )
    assert first.lines[0].startswith("wrote out: 3 scenes in 1 shard, 0.0 MB")
    assert repeated.lines[0].startswith("wrote out: 3 scenes in 1 shard (1 existed), 0.0 MB")
    assert [outcome.exit_code for outcome in refused] == [2, 2]
    assert "out/pack.json: this pack was started with first scene " in errors
    assert not (tmp_path / "out2").exists()


def test_a_corruption_set_is_created_extended_and_drawn(tmp_path: Path) -> None:
    write_tree(tmp_path / "my tree", 5)
    corrupt = "data corrupt 'my tree' corrupted --limit 3 --workers 1"
    outcomes, errors = run_commands(
        f"{corrupt} --only digital --severity 5 --severity 2",
        f"{corrupt} --only contrast --only impulse_noise --severity 2",
        "data preview corrupted/contrast/2",
        f"{corrupt} --only contrats",
        f"{corrupt} --quality 90 --seed 1",
        f"{corrupt} --severity 6",
        "data corrupt 'my tree' small --image-size 31",
        "data corrupt generated generated --limit 2 --only fog --severity 1",
        cwd=tmp_path,
    )
    first, second, preview, *refused, generated = outcomes
    assert first.exit_code == 0
    assert first.lines[0].startswith("wrote corrupted: 3 images × 4 corruptions × 2 severities: 24 written, 0.")
    assert first.lines[1:] == ["next: c2fmae data preview corrupted/contrast/5"]  # no labels, so no evaluation
    assert second.lines[0] == "wrote corrupted: 3 images × 2 corruptions × 1 severity: 3 written, 0.0 MB, 3 existed"
    assert preview.exit_code == 0
    paths = sorted((tmp_path / "corrupted/impulse_noise/2").iterdir())
    assert [path.name for path in paths] == ["0.jpg", "2.jpg", "4.jpg"]
    assert json.loads((tmp_path / "corrupted/dataset.json").read_text())["corrupted"]["source"] == "my tree"
    assert [outcome.exit_code for outcome in refused] == [2, 2, 2, 2]
    assert "error: no corruption named 'contrats'. Did you mean 'contrast'? Known: blur, brightness, " in errors
    assert "error: corrupted/dataset.json: this set was started with quality 85, now 90; seed 0, now 1." in errors
    assert "image_size: input should be greater than or equal to 32, got 31" in errors
    assert not (tmp_path / "small").exists()
    assert generated.exit_code == 0
    assert generated.lines[-2:] == [
        "next: c2fmae data preview generated/fog/1",
        "      c2fmae eval robustness MODEL --custom NAME=generated",
    ]
    assert len(list((tmp_path / "generated/fog/1").glob("*/*.jpg"))) == 2


def test_evaluation_sets_are_compared_with_their_suites(tmp_path: Path) -> None:
    write_as_tar(tmp_path / "r.tar", class_files("imagenet-r/", IN_BOTH))
    write_as_folder(tmp_path / "own", class_files("", ("cat", "dog")))
    write_as_folder(tmp_path / "c", grid_files(["fog"], IN_BOTH))
    (incomplete, own, corruptions, *refused), errors = run_commands(
        "data check r.tar --as r",
        "data check own --as custom",
        "data check c --as c",
        "data check own --as imagenet-aa",
        "data check own --as custom --workers 2",
        cwd=tmp_path,
    )
    assert incomplete == (
        1,
        [
            "problem: 198 of 200 class directories missing: n01443537, n01484850, n01494475, n01498041, n01514859, …",
            "problem: 4 of 30,000 images: the set is incomplete",
            "imagenet-r: 4 images of 2 classes, 4 of them decoded",
            "2 problems",
            "next: c2fmae eval robustness MODEL --imagenet-r r.tar",
        ],
    )
    assert own == (
        0,
        [
            "custom: 4 images of 2 classes, 4 of them decoded",
            "0 problems",
            "next: c2fmae eval robustness MODEL --custom NAME=own",
        ],
    )
    assert corruptions.exit_code == 1
    assert corruptions.lines[0].startswith("problem: 14 of the 15 corruptions missing: gaussian_noise, shot_noise,")
    assert corruptions.lines[-1] == "next: c2fmae eval robustness MODEL --imagenet-c c"
    assert [outcome.exit_code for outcome in refused] == [2, 2]
    assert "no suite named 'imagenet-aa'. Did you mean 'imagenet-a'?" in errors
    assert (
        "--as: cannot be combined with --fix-list, --granularities, --boxes-only or --workers. Leave them out" in errors
    )


def test_every_importer_has_a_command() -> None:
    assert tuple(IMPORTS) == tuple(IMPORTERS)


def test_the_help_of_set_names_every_setting_without_an_option() -> None:
    pack = get_command(data_commands).commands["pack"]  # type: ignore[attr-defined]
    (set_option,) = (option for option in pack.params if "--set" in option.opts)
    without_option = set(list_settings(PackConfig)) - {option.name for option in pack.params}
    assert without_option
    assert all(f"{key}=" in set_option.help for key in without_option)


def test_a_set_of_a_plug_in_is_evaluated_by_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for private in ("_entries", "_summaries"):
        monkeypatch.setattr(SUITES, private, dict(getattr(SUITES, private)))
    SUITES.register("pets", "Pets.")(Suite(name="pets", title="Pets", layout=LabelledImages()))
    root = write_as_folder(tmp_path / "own", class_files("", ("cat", "dog")))
    done = CliRunner().invoke(data_commands, ["check", str(root), "--as", "pets"], catch_exceptions=False)
    hint = f"next: c2fmae eval robustness MODEL --set 'sets=[{{suite: pets, source: {root}}}]'"
    assert done.stdout.splitlines()[-1] == hint


def test_the_sets_of_a_folder_are_reported_one_after_the_other_and_several_paths_as_one_set(tmp_path: Path) -> None:
    write_tree(tmp_path / "all/train", 3)
    write_tree(tmp_path / "all/val", 2)
    (tmp_path / "all/val/semantic/1.png").write_bytes(b"")
    outcomes, _ = run_commands(
        "data check all --fix-list good.txt",
        "data preview all",
        "data stats all --out drawn/stats.png",
        "data pack all/train packed/a --set name=a",
        "data check packed/a/a-000000.tar all/train",
        cwd=tmp_path,
    )
    checked, preview, stats, packed, combined = outcomes
    assert checked.exit_code == 1
    headings = [line for line in checked.lines if line.startswith(("train", "val"))]
    assert headings == ["train: all/train", "val: all/val"]
    assert [line for line in checked.lines if "valid sample" in line][:2] == [
        "0 problems, 3 valid samples",
        "1 problem, 1 valid sample",
    ]
    assert checked.lines[-1] == ("next: c2fmae data pack all/val OUT --keys good-val.txt  # packs the valid samples")
    assert (tmp_path / "good-train.txt").read_text().split() == ["0", "1", "2"]
    assert (preview.exit_code, stats.exit_code, packed.exit_code) == (2, 0, 0)  # a broken scene cannot be drawn
    assert stats.lines[-1] == "next: c2fmae data check all"
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["stats-train.png", "stats-val.png"]
    assert (tmp_path / "preview-train.png").is_file()
    assert combined.exit_code == 2  # one set has no key twice


def test_objects_are_checked_packed_and_drawn(tmp_path: Path) -> None:
    for split in ("train", "val"):
        entries = [annotation(1, 10, 3, (2, 4, 10, 8)), annotation(2, 20, 90, (0, 0, 3, 3))]
        write_coco(tmp_path / "coco", entries, split=split, num_images=3)
    broken = write_coco(tmp_path / "broken", [annotation(1, 10, 4, (2, 4, 10, 8))], split="val")
    write_yolo(tmp_path / "mixed", {"a": "0 .5 .5 .2 .4\n0 .1 .1 .5 .5 .9 .1"})
    outcomes, _ = run_commands(
        "data check coco",
        "data preview coco/annotations/instances_val.json --scenes 2",
        "data stats coco",
        "data pack coco/annotations/instances_val.json packed",
        "data check packed",
        "data check broken/annotations/instances_val.json --fix-list good.txt",
        "data pack broken/annotations/instances_val.json packed2 --keys good.txt",
        "data check coco/annotations/instances_val.json --granularities semantic",
        "data check mixed/images/val",
        "data check mixed/images/val --boxes-only",
        "data pack mixed/images/val packed3 --boxes-only",
        cwd=tmp_path,
    )
    checked, _, _, _, packed_check, listed, packed2, _, _, boxes_only, _ = outcomes
    assert [outcome.exit_code for outcome in outcomes] == [0, 0, 0, 0, 0, 1, 0, 2, 2, 0, 0]
    assert boxes_only.lines[-1] == "next: c2fmae data preview mixed/images/val --boxes-only"
    assert "train: coco/annotations/instances_train.json" in checked.lines
    table = [line for line in packed_check.lines if line.startswith(("label", "    "))]
    assert [line.split() for line in table] == [
        ["label", "class", "objects", "images", "crowds"],
        ["0", "cat", "1", "1", "0"],
        ["1", "dog", "1", "1", "0"],
        ["2", "cow", "0", "0", "0"],
    ]
    assert table == [line for line in checked.lines if line.startswith(("label", "    "))][:4]
    assert listed.lines[0].startswith(f"problem: {broken.relative_to(tmp_path)}: annotation 1: category_id 4")
    assert packed2.lines[0].startswith("wrote packed2: 1 scene ")
