"""Registries, and one test over every entry of each of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import c2fmae.core.granularity
import c2fmae.core.scene
import c2fmae.data
import c2fmae.data.suites
import c2fmae.eval.builtin
import c2fmae.eval.classification.recipes
import c2fmae.labelling.builtin
import c2fmae.masking
import c2fmae.methods
import c2fmae.recipes
from c2fmae.core.errors import UserError
from c2fmae.core.registry import Registry, list_registries

ENTRIES = [(registry, name) for registry in list_registries() for name in registry]


@pytest.mark.parametrize(("registry", "name"), ENTRIES, ids=[f"{r.kind} {n}" for r, n in ENTRIES])
def test_every_entry_is_found_and_described_in_one_line(registry: Registry[object], name: str) -> None:
    assert registry.get(name) is not None
    line = registry.describe(name)
    assert line.endswith(".")
    assert 10 < len(line) < 120
    assert name == name.lower()


@pytest.fixture
def shapes() -> Registry[type]:
    registry: Registry[type] = Registry("shape")
    registries_list = c2fmae.core.registry._REGISTRIES
    registries_list.remove(registry)  # type: ignore[arg-type]
    registry.register("disc")(Disc)
    return registry


class Disc:
    """A filled circle.

    And more about it.
    """


class Bare:
    pass


def test_lookup_by_name_returns_the_object_and_its_summary(shapes: Registry[type]) -> None:
    assert shapes.get("disc") is Disc
    assert shapes.describe("disc") == "A filled circle."
    assert list(shapes) == ["disc"]


def test_an_unknown_name_is_rejected_with_a_suggestion(shapes: Registry[type]) -> None:
    with pytest.raises(UserError) as caught:
        shapes.get("disk")
    assert str(caught.value) == "no shape named 'disk'. Did you mean 'disc'? Known: disc"


def test_a_name_cannot_be_registered_twice(shapes: Registry[type]) -> None:
    with pytest.raises(UserError) as caught:
        shapes.register("disc")(Bare)
    assert str(caught.value) == f"shape 'disc' is registered already, by {Disc.__module__}"


def test_an_object_without_a_docstring_is_rejected(shapes: Registry[type]) -> None:
    with pytest.raises(UserError) as caught:
        shapes.register("bare")(Bare)
    assert str(caught.value) == "shape 'bare' needs a docstring: its first line is shown in lists"
    shapes.register("bare", "Nothing on it.")(Bare)
    assert shapes.describe("bare") == "Nothing on it."


STRIPES = '''
"""A mask of columns: a plug-in as another package would write it."""

from dataclasses import dataclass

import torch
from c2fmae.masking import POLICIES


@POLICIES.register("stripes")
@dataclass(frozen=True, kw_only=True)
class Stripes:
    """Hide every n-th patch first."""

    every: int = 2

    def hide(self, patches, num_masked, noise, *, progress):
        place = torch.arange(patches.regions.shape[1]).expand_as(patches.regions)
        order = (place % self.every * 1000 + place).argsort(dim=1).argsort(dim=1)
        return order < num_masked.unsqueeze(1)
'''

USE = """
import torch
from c2fmae.masking import mask_scenes
from c2fmae.config.masking import MaskingConfig
from c2fmae.core.registry import list_plugin_entries
patches = torch.zeros(2, 9, dtype=torch.long)
policy = MaskingConfig.from_dict({"name": "stripes", "options": {"every": 3}}).build()
masks = mask_scenes(policy, patches, patches, num_visible=14, progress=0.0, generator=torch.Generator())
print(policy, masks.num_masked.sum(dim=1).tolist(), list_plugin_entries())
"""


def outside_package(folder: Path, code: str) -> dict[str, str]:
    """Lay out an installed package with an entry point; return the environment that sees it."""
    (folder / "stripes.py").write_text(code)
    info = folder / "stripes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stripes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[c2fmae.plugins]\nstripes = stripes\n")
    return os.environ | {"PYTHONPATH": str(folder)}


@pytest.mark.unchecked
def test_an_outside_package_adds_a_mask_by_an_entry_point(tmp_path: Path) -> None:
    environment = outside_package(tmp_path, STRIPES)
    used = subprocess.run([sys.executable, "-c", USE], env=environment, capture_output=True, text=True, check=False)
    assert used.stdout == "Stripes(every=3) [13, 13] {'stripes': {'mask': ['stripes']}}\n", used.stderr
    command = [sys.executable, "-m", "c2fmae_cli", "plugins"]
    listed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "  stripes        Hide every n-th patch first.\n" in listed.stdout


@pytest.mark.unchecked
def test_a_broken_plug_in_is_named(tmp_path: Path) -> None:
    environment = outside_package(tmp_path, "import no_such_module\n")
    command = [sys.executable, "-m", "c2fmae_cli", "plugins"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "error: plug-in 'stripes' of stripes (stripes) failed to load: No module named 'no_such_module'. "
        "Repair or uninstall it\n"
    )
