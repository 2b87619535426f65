"""Configs and recipes are imported without torch, so that help, lists and validation of names start at once."""

import subprocess
import sys
from pathlib import Path

import c2fmae

ROOT = Path(c2fmae.__file__).parent
FILES = [
    *(ROOT / "config").glob("*.py"),
    *(ROOT / "recipes").glob("*.py"),
    *(ROOT / "eval").rglob("*config.py"),
    *(ROOT / "eval" / name / "recipes.py" for name in ("classification", "segmentation")),
    *(ROOT / "labelling" / f"{name}.py" for name in ("__init__", "registry")),
    *(ROOT / "core" / f"{name}.py" for name in ("choice", "config", "decoder_options", "experiment_config")),
    *(ROOT / "core" / f"{name}.py" for name in ("granularity", "registry", "specs", "training")),
]
HEAVY = ("torch", "torchvision", "timm", "numpy", "PIL", "safetensors")

SCRIPT = """
import importlib, sys
heavy, modules = sys.argv[1].split(","), sys.argv[2:]
sys.modules |= dict.fromkeys(heavy)  # importing them now fails
for module in modules:
    importlib.import_module(module)
from c2fmae.recipes import RECIPES
print(len(modules), RECIPES.describe("c2fmae-b"))
"""


def test_configs_and_recipes_are_imported_without_torch() -> None:
    modules = [".".join(file.relative_to(ROOT.parent).with_suffix("").parts) for file in FILES]
    modules = [module.removesuffix(".__init__") for module in modules if "probes" not in module]
    command = [sys.executable, "-c", SCRIPT, ",".join(HEAVY), *modules]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    count, _, title = done.stdout.strip().partition(" ")
    assert int(count) == len(modules) > 20
    assert title.startswith("C2FMAE with ViT-B")
