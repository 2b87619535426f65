"""`import c2fmae.masking` requires only torch, NumPy and jaxtyping."""

import subprocess
import sys

BLOCKED = ("pydantic", "timm", "torchvision", "PIL", "yaml", "typer", "rich", "safetensors", "fvcore", "pycocotools")

SCRIPT = f"""
import sys
for name in {BLOCKED!r}:
    sys.modules[name] = None  # importing it now fails
import torch
from c2fmae.masking import CURRICULA, mask_scenes
patches = torch.zeros(2, 9, dtype=torch.long)
masks = mask_scenes("progressive", patches, patches, num_visible=5, progress=0.4, generator=torch.Generator())
print(masks.visible_idx.shape, CURRICULA.get("triangle")(0.25))
"""


def test_masking_imports_only_torch_numpy_and_jaxtyping() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "torch.Size([2, 5]) (0.5, 0.5)"


def test_the_package_and_core_import_no_heavy_library() -> None:
    script = "import sys, c2fmae, c2fmae.core; print(sorted({'torch', 'numpy', 'pydantic', 'yaml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
