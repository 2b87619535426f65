"""`c2fmae label`: its exit codes, first and last lines."""

from pathlib import Path

import pytest
from c2fmae_cli import app
from typer.testing import CliRunner

from tests.cli.session import run_commands
from tests.labelling.simple_labellers import write_images

LABELLER = """
from tests.labelling.simple_labellers import Brightness


class Leaking(Brightness):
    maps_know_labels = True
"""


@pytest.mark.unchecked
def test_the_command_labels_continues_and_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[2]}:{tmp_path}", prepend=":")
    (tmp_path / "mine.py").write_text(LABELLER)
    for name in ("a", "b"):
        write_images(tmp_path / "images" / name, 6, dark=[0, 2, 4], broken=[5] if name == "b" else [])
    both = "--instances mine:Leaking --semantics mine:Leaking --device cpu"
    first = f"label images maps {both} --workers 1 --set shard_size=4"
    outcomes, errors = run_commands(
        *("label images maps", f"label images maps {both} --dry-run", f"{first} --part 1/2"),
        *(
            first,
            first,
            f"{first} --set batch_size=3",
            f"label images other {both} --limit 2 --images leave-out --truth maps",
            f"label images new {both} --truth maps/none",
            f"label images new {both} --truth generated",
            f"label images new {both} --names own",
            f"label images new {both} --truth images",
        ),
        cwd=tmp_path,
    )
    assert [outcome.exit_code for outcome in outcomes] == [2, 0, 0, 0, 0, 2, 0, 2, 2, 2, 2]
    without, dry_run, part, done, again, _, alone, *_ = (outcome.lines for outcome in outcomes)
    assert not without
    assert dry_run[0] == "instance and semantic maps: brightness: limit=128"
    assert dry_run[2].startswith("note: the maps are made from more than the pixels of an image")
    assert dry_run[-1] == "next: the same command without --dry-run"
    assert part[-2:] == [
        "maps: this part is finished; 2 of 3 shards are missing",
        "next: the commands of the other parts (of 2); the last one to end finishes maps",
    ]
    assert done[-2].startswith("wrote maps: 11 images in 3 shards (1 existed), ")
    assert ", 1 failed (maps/failed.txt), " in done[-2]
    assert done[-3] == "counts and contact sheets: maps/quality.html"
    assert (tmp_path / "maps/quality.html").exists()
    assert done[-1] == again[-1] == "next: c2fmae pretrain c2fmae-b --data maps"
    assert "in 3 shards (3 existed)" in again[-2]
    assert alone[-1] == "next: c2fmae data preview other"
    assert "wrote other/comparison.html and other/comparison.json" in alone
    assert (tmp_path / "other/comparison.html").exists()
    assert not (tmp_path / "new").exists()
    problems = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert problems == [
        "error: --instances, --semantics: give at least one labeller, such as --instances regions",
        "error: maps/pack.json: this pack was started with batch_size 8, now 3. Label the same images with the same"
        " settings, or choose another directory",
        "error: maps/none: does not exist. Give a directory, a .tar shard, a pattern of shards, or one of: generated",
        "error: the two sets have no image in common: a key of the maps is 'a/0000', one of the truth is '00000000'."
        " Compare maps of the same images, with the same names",
        "error: --names own: no labeller here searches for names, as grounded does. Remove it",
        "error: the two sets have no map in common (got instance, semantic and none). Compare sets that both have one",
    ]


def test_an_interrupted_command_names_the_finished_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("c2fmae.labelling.label.label_images", interrupt)
    images, out = write_images(tmp_path / "images", 1), tmp_path / "maps"
    labeller = "tests.labelling.simple_labellers:Brightness"
    result = CliRunner().invoke(app, ["label", str(images), str(out), "--instances", labeller, "--device", "cpu"])
    message = f"interrupted. Finished shards are in {out}; run the same command again to continue"
    assert result.stdout.splitlines()[-1] == message
    assert result.exit_code != 0
