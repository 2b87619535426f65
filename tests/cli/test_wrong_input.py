"""Wrong arguments, files and settings: every command prints one error, exits with code 2 and writes nothing."""

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from c2fmae_cli import main

FORMATS = Path(__file__).parent.parent / "formats" / "v1"
LONG = "x" * 5_000
MODELS = (
    "missing", "notes.txt", "empty", "pipe", "loop", LONG, "", "timm:", "timm:no_such_model",
    "timm:vit_tiny_patch16_224@missing.pth", "zeros.pth", "runs",
)  # fmt: skip
DATA = ("missing", "notes.txt", "empty", "pipe", "loop", LONG, "", "data/photos/*.tar", "generate", "zeros.tar")
RECIPES = ("missing", "c2fmae-bb", "notes.txt", "broken.yaml", "deep.yaml", "pipe", "empty", LONG, "")
SETTINGS = (
    "steps", "=", "training", "training=5", "training.=3", "training.stepz=3", "training.steps=0", "training.steps=-1",
    "training.steps=true", "training.steps=1.5", "training.steps=many", "training.steps=99999999999999999999",
    f"training.steps={'9' * 5_000}", "training.epochs=-1", "training.epochs=.nan", "training.epochs=.inf",
    "training.lr=-1", "training.lr=0x", f"training.lr={'[' * 3_000}", f"training.lr={LONG}", "training.batch_size=0",
    "training.seed=2001-99-99", "training.seed=!!int ''", "training.seed=!!bool x", "training.seed=&a [*a]",
    "training.seed={a: 1, a: 2}", "training.device=tpu", "training.precision=fp8", "method=", "method.masking=zebra",
    "method.masking={name: random, options: {x: 1}}", "method.masking.options.ratio=2", "method.decoder=casc",
    "method.encoder.width=0", "method.image_size=33", "data.workers=-1", "data.scale=[0, 2]", "data.scale=[1]",
    "data.train=missing", "data.train=[]", "data.train={name: generated, options: {size: -1}}", "data.flip=2",
    "data.train={name: generated, options: {sizes: 32}}", "data.on_broken=maybe", "saving.minutes=0",
    "saving.keep_last=0", "watching.trackers=[foo]", "watching.log_every=0", "init=missing", "kind=finetuning",
    "format=3", "nothing.at.all=1",
)  # fmt: skip
TEMPLATES = {
    "MODEL": (
        MODELS,
        (
            "eval knn MODEL --data data/pack --test data/photos",
            "eval attention MODEL --data data/pack",
            "eval cost MODEL",
            "eval robustness MODEL --clean data/photos",
            "eval finetune MODEL --data data/pack --test data/photos",
            "eval segment MODEL --data data/pack --test data/photos",
            "export timm MODEL out",
            "export onnx MODEL out",
            "predict MODEL data/photos --out out",
            "view reconstruct MODEL --out out",
            "view attention MODEL --out out",
            "pretrain mae-debug --init MODEL --out out",
            "import mae MODEL mae-debug --out out",
        ),
    ),
    "DATA": (
        DATA,
        (
            "data check DATA",
            "data stats DATA",
            "data preview DATA",
            "data pack DATA out",
            "data corrupt DATA out",
            "data import voc DATA out",
            "pretrain mae-debug --data DATA --out out",
            "eval knn runs/mae --data DATA",
            "eval linear runs/mae --data data/pack --test DATA",
            "eval robustness runs/finetuned --custom a=DATA",
            "view masks --data DATA --out out",
            "predict runs/finetuned DATA --out out",
        ),
    ),
    "RECIPE": (RECIPES, ("pretrain RECIPE --out out", "describe RECIPE", "recipes show RECIPE")),
    "SETTING": (SETTINGS, ("pretrain mae-debug --out out --set SETTING",)),
}
OTHERS = (
    "evaluate", "eval knnn runs/mae", "eval knn", "eval knn runs/mae", "pretrain",
    "pretrain mae-debug --steps 0",
    "pretrain mae-debug --steps 5 --epochs 3", "pretrain mae-debug --out notes.txt", "pretrain mae-debug --out data",
    "pretrain mae-debug --out runs/mae", "pretrain runs/mae --resume --set training.seed=1", "pretrain empty --resume",
    "pretrain mae-debug --unknown", "export timm runs/mae notes.txt", "export timm runs/mae data",
    "data generate scenes --count 0", "data generate scenes --size 0", "data generate scenes --difficulty brutal",
    "data pack data/photos data/photos", "data corrupt data/photos data/photos", "doctor missing", "doctor notes.txt",
    "view schedule --set masking.options.curriculum.name=no", "recipes show", "describe", "import mae",
    "eval robustness runs/finetuned", "eval robustness runs/finetuned --custom data/photos",
    "eval robustness runs/finetuned --clean data/photos --imagenet-val data/photos",
    "eval knn runs/mae --step 77 --data data/pack", "predict runs/mae data/photos --out out",
    "predict runs/finetuned data/photos --out notes.txt", "predict runs/finetuned data/photos --out runs",
    "predict runs/finetuned data/photos --out data/photos/out",
    "predict runs/finetuned data/photos --as-scenes --out out",
    "predict runs/finetuned data/photos --save overlays --out out", "predict runs/finetuned data/photos",
    "predict runs/finetuned data/photos --top-k 0 --out out", "predict runs/finetuned notes.txt --out out",
    "eval segment runs/mae", "eval segment runs/mae --data data/pack",
    "eval segment runs/mae --data data/photos --test data/pack", "eval segment runs/mae --data generated --recipe papr",
    "eval segment runs/mae --data generated --set testing.mode=windows", "eval segment runs/finetuned --resume",
    "eval segment runs/mae --data generated --set testing.stride=0", "eval segment runs/mae --set testing.flip=true",
)  # fmt: skip
COMMANDS = [
    template.replace(key, shlex.quote(value))
    for key, (values, templates) in TEMPLATES.items()
    for template, value in product(templates, values)
] + list(OTHERS)


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Work in a directory with runs and data, and with files that are none."""
    path = tmp_path_factory.mktemp("wrong_input") / "v1"
    shutil.copytree(FORMATS, path)
    shard = path / "data/pack/train-000000.tar"
    _, changed = json.loads(Path(f"{shard}.index").read_bytes().partition(b"\n")[0])["stamp"]
    os.utime(shard, ns=(changed, changed))
    (path / "empty").mkdir()
    os.mkfifo(path / "pipe")
    for name, target in (("loop", "loop"), ("zeros.pth", "/dev/zero"), ("zeros.tar", "/dev/zero")):
        (path / name).symlink_to(target)
    for name, text in (("notes.txt", "hello"), ("broken.yaml", "method: [\n"), ("deep.yaml", f"a: {'[' * 3_000}")):
        (path / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        yield path


def list_files(folder: Path) -> dict[str, int]:
    """Return when each file was last written."""
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*") if not path.is_dir()}


# The wrong commands fail before they compute: the run with shape checks would find the same.
@pytest.mark.unchecked
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[:80])
def test_a_wrong_command_prints_one_error_and_writes_nothing(
    command: str, work_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = list_files(work_dir)
    monkeypatch.setattr(sys, "argv", ["c2fmae", *shlex.split(command)])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr().err
    is_check = command.startswith("data check ")  # it lists the problems of data, and exits with code 1
    assert end.value.code in ((1, 2) if is_check else (2,)), printed
    assert len(re.findall("^(?:error|Usage): ", printed, re.MULTILINE)) == 1 or is_check, printed
    assert len(printed) < 4_000
    assert list_files(work_dir) == before
