"""Exports are loaded by the code of their model card, in a process that cannot import c2fmae."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from c2fmae.exports.as_hf import hf_target
from c2fmae.exports.as_timm import timm_target
from c2fmae.exports.export import write_export
from tests.exports.noise_sources import NOISE_ORIGIN, draw_noise_images, is_close, make_noise_backbone

BLOCK_C2FMAE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("c2fmae", "c2fmae_cli"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
try:
    import c2fmae
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("c2fmae can be imported")
from safetensors.torch import load_file, save_file
images, found = load_file("images.safetensors")["images"], {}
"""


@pytest.mark.unchecked
def test_the_code_of_a_card_runs_without_c2fmae(tmp_path: Path) -> None:
    backbone = make_noise_backbone(size=(32, 48), keep_positions=True)
    images = backbone.standardise(draw_noise_images((32, 48)))
    save_file({"images": images}, tmp_path / "images.safetensors")
    lines = [BLOCK_C2FMAE]
    for target in (timm_target(backbone), hf_target(backbone)):
        write_export(target, NOISE_ORIGIN, tmp_path / target.library)
        card = (tmp_path / target.library / "README.md").read_text(encoding="utf-8")
        block = re.search(r"```python\n(.*?)```", card, re.DOTALL)
        assert block
        lines += [block[1], f"found[{target.library!r}] = features.detach().clone()"]
    (tmp_path / "elsewhere.py").write_text("\n".join([*lines, 'save_file(found, "found.safetensors")']))
    done = subprocess.run(
        [sys.executable, "-I", "elsewhere.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "found.safetensors")
    assert found.keys() == {"timm", "transformers"}
    expected = backbone.pooled(images).detach()
    assert is_close(found["timm"], expected)
    assert is_close(found["transformers"], expected)
