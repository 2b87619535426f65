"""docs/own-images.md from end to end, with images of one channel and 16 bits, and with arrays of five channels."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import timm
import torch
from PIL import Image

from c2fmae.core.run_dir import find_checkpoint
from c2fmae.data import open_scenes
from tests.cli.session import run_commands
from tests.models.backbones.official_mae import mae_weights

pytestmark = pytest.mark.unchecked

SHORT = (
    "--set training.steps=3 --set training.warmup_steps=1 --set training.batch_size=8 --set data.workers=0"
    " --set data.cache=false"
)


def write_images(root: Path, kind: str) -> None:
    """Write a labelled training and test set in the values that a sensor has: far from those of bytes."""
    scenes = open_scenes("generated", size=32, length=24, difficulty="plain")
    for index in range(len(scenes)):
        scene = scenes[index]
        folder = root / ("test" if index % 3 == 0 else "train") / f"class {index // 3 % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        colours = scene.maps["rgb"].numpy().astype(np.float32)
        if kind == "infrared":
            values = (colours.mean(axis=0) * 9 + 700).astype(np.uint16)
            Image.fromarray(values).save(folder / f"{index}.png")
        elif kind == "bands":
            np.save(folder / f"{index}.npy", np.concatenate([colours, 40 * colours[:2] - 1000]) / 1e4)
        else:
            values = np.stack([colours[0] * 30, colours[1] * 20]).astype(np.int16)
            tifffile.imwrite(folder / f"{index}.tif", values, planarconfig="separate", photometric="minisblack")


def test_public_weights_are_trained_further_on_unusual_images(tmp_path: Path) -> None:
    for kind in ("infrared", "bands", "radar"):
        write_images(tmp_path / kind, kind)
    weights = mae_weights(width=128, depth=4, side=32, patch=8, decoder=None)
    torch.save({"model": weights}, tmp_path / "mae_pretrain.pth")
    pretrain = f"pretrain mae-tiny --init mae_pretrain.pth {SHORT}"
    test_set = "--data infrared/train --test infrared/test"
    outcomes, errors = run_commands(
        "data measure infrared/train infrared/test",
        "data check infrared/train",
        "data preview infrared/train",
        f"{pretrain} --data infrared/train --out runs/infrared",
        "view reconstruct runs/infrared --data infrared/test",
        f"eval knn runs/infrared {test_set}",
        f"eval linear runs/infrared {test_set} --set epochs=1",
        f"eval finetune runs/infrared {test_set} --out classifier --set training.epochs=1"
        " --set training.warmup_epochs=0 --set training.batch_size=8 --set data.workers=0",
        "export timm runs/infrared vit",
        "data measure bands/train bands/test",
        "data pack bands/train packed",
        f"{pretrain} --data packed --out runs/bands",
        "eval knn runs/bands --data packed --test bands/test",
        "data measure radar/train",
        "data preview radar/train --out radar.png",
        f"{pretrain} --data radar/train --out runs/radar",
        "view pca runs/radar --data radar/train",
        cwd=tmp_path,
    )
    assert [outcome.exit_code for outcome in outcomes] == [0] * len(outcomes), errors
    for kind, channels in (("infrared", 1), ("bands", 5), ("radar", 2)):
        description = json.loads((tmp_path / kind / "train/dataset.json").read_text())
        assert (description["channels"], len(description["value_range"])) == (channels, channels)
        assert "instead of 3: each new channel is embedded as the mean of the old ones" in " ".join(errors.split())
        method = find_checkpoint(tmp_path / "runs" / kind).metadata["config"]["method"]
        assert (method["channels"], method["mean"]) == ({"rgb": channels}, description["mean"])
    assert (tmp_path / "infrared/test/dataset.json").read_bytes() == (
        tmp_path / "infrared/train/dataset.json"
    ).read_bytes()
    assert "without RandAugment, which is for 3 channels and not for 1" in errors
    vit = timm.create_model(f"local-dir:{tmp_path / 'vit'}", pretrained=True)
    assert vit.state_dict()["patch_embed.proj.weight"].shape[1] == 1
