"""The commands for data as their user meets them: in processes of their own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.once

# Several commands in one process, since most of the time of each is the import of torch.
SCRIPT = """
import shlex, sys
import c2fmae_cli
for line in sys.stdin:
    print("$", line, end="", flush=True)
    sys.argv = ["c2fmae", *shlex.split(line)]
    try:
        c2fmae_cli.main()
    except SystemExit as end:
        print("->", end.code or 0, flush=True)
"""


def run(*lines: str, cwd: Path) -> tuple[list[tuple[int, list[str]]], str]:
    """Return exit code and lines of each command, and what went to stderr."""
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(
        command,
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        check=True,
        cwd=cwd,
        timeout=120,
    )
    results = []
    for part in ("\n" + done.stdout).split("\n$ ")[1:]:
        *said, end = part.strip().splitlines()[1:]
        results.append((int(end.removeprefix("-> ")), said))
    return results, done.stderr


def write_tree(root: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for name in ("rgb", "semantic", "instance"):
        (root / name).mkdir(parents=True)
    for i in range(count):
        Image.fromarray(rng.integers(256, size=(40, 50, 3), dtype=np.uint8)).save(root / f"rgb/{i}.jpg")
        for name in ("semantic", "instance"):
            Image.fromarray(rng.integers(3, size=(40, 50), dtype=np.uint8)).save(root / f"{name}/{i}.png")


def test_from_a_folder_with_a_fault_to_a_pack_that_is_looked_at(tmp_path: Path) -> None:
    write_tree(tmp_path / "my tree", 5)
    (tmp_path / "my tree/semantic/3.png").write_bytes(b"")
    results, errors = run(
        "data check 'my tree'",
        "data pack 'my tree' packed",
        "data check 'my tree' --fix-list good.txt",
        "data pack 'my tree' packed2 --keys good.txt --label-stride 2 --short-side 20 --set shard_size=3",
        "data preview packed2 --scenes 3",
        "data stats packed2",
        "data pack 'my tree' packed2 --keys good.txt --set shard_size=3",
        "data pack 'my tree' packed3 --label-stride 0 --set nmae=x",
        "data check 'my tree' --fix-list none/good.txt",
        "data pack 'my tree' packed3 --keys none.txt",
        cwd=tmp_path,
    )
    fault = "my tree/semantic/3.png: not a map of ids. Store it as a PNG of one channel at 8 or 16 bits"
    (code, said), (stopped, _), (_, listed), packed, preview, stats, *refused = results
    assert code == 1
    assert said[0] == f"problem: {fault}"
    assert said[1].split() == ["id", "class", "pixels", "images"]
    assert said[-2:] == [
        "1 problems, 4 good samples",
        "next: c2fmae data check 'my tree' --fix-list good.txt, which keeps the good samples' keys for pack",
    ]
    assert stopped == 2
    assert f"error: {fault}\nTo pack the others: `c2fmae data check SOURCE --fix-list good.txt` lists" in errors
    assert listed[-2:] == [
        "wrote good.txt",
        "next: c2fmae data pack 'my tree' OUT --keys good.txt, which leaves out what is wrong",
    ]
    assert (tmp_path / "good.txt").read_text() == "0\n1\n2\n4\n"
    megabytes = sum(path.stat().st_size for path in (tmp_path / "packed2").glob("*.tar")) / 1e6
    assert packed == (
        0,
        [f"wrote packed2: 4 scenes in 2 shards, {megabytes:.1f} MB", "next: c2fmae data preview packed2"],
    )
    assert preview == (0, ["wrote preview.png", "next: c2fmae data stats packed2"])
    assert stats[0] == 0
    assert stats[1][-2:] == ["wrote stats.png", "next: c2fmae data preview packed2"]
    with Image.open(tmp_path / "stats.png") as picture:
        assert picture.width > 800
    assert [end for end, _ in refused] == [2, 2, 2, 2]
    assert "this pack was begun with label_stride 2, now 4; short_side 20, now None. Pack the same" in errors
    assert "error: data pack: 2 problems\n  label_stride: input should be greater than or equal to 1, got 0\n" in errors
    assert "  nmae: no such setting. Did you mean 'name'?\n" in errors
    assert "error: none/good.txt: its folder does not exist. Make it, or give another place\n" in errors
    assert "error: none.txt: cannot be read: No such file or directory\n" in errors
    assert not (tmp_path / "packed3").exists()


def test_scenes_are_generated_and_packed(tmp_path: Path) -> None:
    generate = "data generate out --count 3 --size 32 --difficulty easy --seed"
    results, errors = run(f"{generate} 1", f"{generate} 1", f"{generate} 2", "data import voc none out2", cwd=tmp_path)
    assert [code for code, _ in results] == [0, 0, 2, 2]
    assert results[0][1][0].startswith("wrote out: 3 scenes in 1 shards, 0.0 MB")
    assert results[1][1][0].startswith("wrote out: 3 scenes in 1 shards, 1 of them finished before, 0.0 MB")
    assert "out/pack.json: this pack was begun with first scene " in errors
    assert not (tmp_path / "out2").exists()


def test_photos_are_corrupted_added_to_and_looked_at(tmp_path: Path) -> None:
    write_tree(tmp_path / "my tree", 5)
    corrupt = "data corrupt 'my tree' spoilt --limit 3 --workers 1"
    results, errors = run(
        f"{corrupt} --only digital --severity 5 --severity 2",
        f"{corrupt} --only contrast --only impulse_noise --severity 2",
        "data preview spoilt/contrast/2",
        f"{corrupt} --only contrats",
        f"{corrupt} --quality 90 --seed 1",
        f"{corrupt} --severity 6",
        "data corrupt 'my tree' small --image-size 31",
        "data corrupt generated generated --limit 2 --only fog --severity 1",
        cwd=tmp_path,
    )
    first, second, preview, *refused, generated = results
    assert first[0] == 0
    assert first[1][0].startswith("wrote spoilt: 3 photos by 4 corruptions at 2 severities: 24 made, 0.")
    assert first[1][1:] == ["next: c2fmae data preview spoilt/contrast/5"]  # without labels there is nothing to try
    assert second[1][0].startswith("wrote spoilt: 3 photos by 2 corruptions at 1 severities: 3 made, 0.0 MB, 3 more")
    assert preview[0] == 0
    assert [path.name for path in sorted((tmp_path / "spoilt/impulse_noise/2").iterdir())] == [
        "0.jpg",
        "2.jpg",
        "4.jpg",
    ]
    assert json.loads((tmp_path / "spoilt/dataset.json").read_text())["corrupted"]["source"] == "my tree"
    assert [code for code, _ in refused] == [2, 2, 2, 2]
    assert "error: no corruption named 'contrats'. Did you mean 'contrast'? Known: blur, brightness, " in errors
    assert "error: spoilt/dataset.json: this set was begun with quality 85, now 90; seed 0, now 1. Corrupt" in errors
    assert "image_size: input should be greater than or equal to 32, got 31" in errors
    assert not (tmp_path / "small").exists()
    assert generated[0] == 0
    assert generated[1][-1].endswith("fog/1, or c2fmae eval robustness MODEL --custom NAME=generated")
    assert len(list((tmp_path / "generated/fog/1").glob("*/*.jpg"))) == 2


def test_help_of_the_data_commands_comes_without_torch(tmp_path: Path) -> None:
    script = (
        "import sys, c2fmae_cli\n"
        "for words in (['data'], ['data', 'pack'], ['data', 'corrupt'], ['data', 'import', 'voc']):\n"
        "    sys.argv = ['c2fmae', *words, '--help']\n"
        "    try: c2fmae_cli.main()\n"
        "    except SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    for word in (
        "check",
        "pack",
        "preview",
        "stats",
        "generate",
        "import",
        "corrupt",
        "--label-stride",
        "--only",
        "--split",
    ):
        assert word in done.stdout
