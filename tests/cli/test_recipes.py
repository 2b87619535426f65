"""`c2fmae recipes`, `describe` and `plugins` in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

from c2fmae.config.presets import METHODS
from c2fmae.recipes import RECIPES
from c2fmae.recipes.config import RecipeConfig
from tests.cli.session import run_commands

pytestmark = pytest.mark.unchecked

NAMES = list(RECIPES)  # before examples of the documentation register theirs


def run(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "c2fmae_cli", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, timeout=120)


def test_recipes_are_listed_by_family_with_a_line_each() -> None:
    done = run("recipes")
    assert (done.returncode, done.stderr) == (0, "")
    *lines, last = done.stdout.splitlines()
    families = [line for line in lines if not line.startswith(" ")]
    two_branches = {"attmask", "cmae", "conmim", "dino", "ibot", "lut", "moco", "mst", "simclr"}
    assert families == sorted(
        two_branches
        | {"c2fmae", "mae", "maskfeat", "multimae", "simmim", "table5", *(f"table6{part}" for part in "abcdef")}
    )
    column = lines[1].index(RECIPES.describe(NAMES[0]))
    entries = [line for line in lines if line.startswith(" ")]
    assert [line[:column].strip() for line in entries] == NAMES
    assert [line[column:] for line in entries] == [RECIPES.describe(name) for name in NAMES]
    assert max(map(len, entries)) <= 120
    assert last == "next: c2fmae recipes show c2fmae-b"


def test_listing_recipes_needs_no_torch() -> None:
    script = (
        "import sys, c2fmae_cli\n"
        "sys.argv = ['c2fmae', 'recipes']\n"
        "try: c2fmae_cli.main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'timm', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "  mae-b               MAE with ViT-B" in done.stdout


def test_a_shown_recipe_is_a_file_that_can_be_read_and_errors_are_one_message(tmp_path: Path) -> None:
    recipe = RECIPES.get("table6d-parallel")()
    (tmp_path / "mine.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    changes = "--set method.num_visible=147 --set 'method.decoder.options.order=[rgb, instance, semantic]'"
    show = "recipes show"
    (shown_outcome, repeated, changed, *refused), errors = run_commands(
        f"{show} table6d-parallel",
        f"{show} mine.yaml",
        f"{show} c2fmae-b {changes}",
        f"{show} table6d-paralel",
        f"{show} c2fmae-b --set method.decodr.name=parallel --set metod.num_visible=1",
        f"{show} c2fmae-b --set method.decoder.name=paralel",
        f"{show} mine.yaml --set method.nmae=x",
        f"{show} none.yaml",
        cwd=tmp_path,
    )
    assert shown_outcome.exit_code == 0
    shown = shown_outcome.text
    assert shown == recipe.to_yaml() + (
        "# next: c2fmae recipes show table6d-parallel > mine.yaml  # then edit it, and: c2fmae describe mine.yaml\n"
    )
    assert shown.startswith("format: 2\nkind: pretraining\nname: table6d-parallel\ntitle: 'Table VI d: ")
    (tmp_path / "saved.yaml").write_text(shown, encoding="utf-8")
    assert RecipeConfig.from_yaml(tmp_path / "saved.yaml") == recipe
    assert repeated.text == recipe.to_yaml() + "# next: c2fmae describe mine.yaml\n"
    assert (
        "- 'changed: method.num_visible=147'\n- 'changed: method.decoder.options.order=[rgb, instance, semantic]'\n"
        in changed.text
    )
    assert "  num_visible: 147\n" in changed.text
    assert f"\n# next: c2fmae recipes show c2fmae-b {changes} > mine.yaml  # then" in changed.text
    assert refused == [(2, [])] * 5
    assert errors.splitlines() == [
        f"error: no recipe named 'table6d-paralel'. Did you mean 'table6d-parallel'? Known: {', '.join(NAMES)}",
        "error: --set: 2 problems",
        "  method.decodr: no such setting. Did you mean 'decoder'?",
        "  metod: no such setting. Did you mean 'method'?",
        "error: --set: method.decoder.name: no decoder named 'paralel'. Did you mean 'parallel'? "
        "Known: cascaded, direct, joint, parallel, reversed, self_attention",
        "error: mine.yaml: method.nmae: no such setting. Did you mean 'name'?",
        "error: none.yaml: cannot be read: No such file or directory. Check the path, or use another file",
    ]


def test_an_unknown_subcommand_is_an_error_with_exit_code_2() -> None:
    done = run("recipes", "shwo")
    assert done.returncode == 2
    assert "shwo" in done.stderr


PACKAGE = '''
"""A recipe of another package."""

from c2fmae.config.decoder import DecoderConfig
from c2fmae.config.masked_method import MaskedConfig
from c2fmae.core.decoder_options import CascadedOptions
from c2fmae.recipes import RECIPES
from c2fmae.recipes.config import RecipeConfig


@RECIPES.register("narrow-b")
def narrow_b() -> RecipeConfig:
    """C2FMAE with a decoder half as wide."""
    method = MaskedConfig(decoder=DecoderConfig(options=CascadedOptions(dim=128)))
    return RecipeConfig(name="narrow-b", title="C2FMAE with a decoder half as wide.", source="me", method=method)
'''


def test_a_recipe_of_another_package_is_listed_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "narrow.py").write_text(PACKAGE)
    info = tmp_path / "narrow-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: narrow\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[c2fmae.plugins]\nnarrow = narrow\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    listed = run("recipes").stdout.splitlines()
    assert listed[listed.index("narrow") + 1].split(maxsplit=1) == ["narrow-b", "C2FMAE with a decoder half as wide."]
    (shown,), errors = run_commands("recipes show narrow-b", cwd=tmp_path)
    assert (shown.exit_code, errors) == (0, "")
    assert "    dim: 128\n" in shown.text


def test_plugins_lists_registries_in_aligned_columns() -> None:
    done = run("plugins")
    assert (done.returncode, done.stderr) == (0, "")
    kinds = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert {"decoder", "target", "method", "recipe", "mask", "curriculum", "granularity", "dataset"} <= set(kinds)
    recipes = done.stdout.partition("\nrecipe\n")[2].splitlines()[: len(NAMES)]
    column = recipes[0].index(RECIPES.describe(NAMES[0]))
    assert [line[column:] for line in recipes] == [RECIPES.describe(name) for name in NAMES]


def test_describe_prints_the_architecture_with_overrides() -> None:
    done = run("describe", "c2fmae-debug", "--set", "method.decoder.name=parallel")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("c2fmae-debug  C2FMAE in miniature")
    assert any(line.startswith("decoder     parallel ") for line in lines)
    assert lines[-1] == "next: c2fmae recipes show c2fmae-debug --set method.decoder.name=parallel"


def test_describe_takes_names_of_methods_too(tmp_path: Path) -> None:
    names = ("mae", "simclr")
    outcomes, errors = run_commands(*(f"describe {name} --set method.encoder.depth=1" for name in names), cwd=tmp_path)
    assert errors == ""
    for name, outcome in zip(names, outcomes, strict=True):
        assert outcome.exit_code == 0
        assert outcome.lines[0] == f"{name}  {METHODS.describe(name)}"
        assert outcome.lines[-1] == "next: c2fmae recipes  # experiments with this and other methods"
    assert "view second         1 × 224×224 pixels, another random crop, changed colours" in outcomes[1].lines
    assert "teacher             none" in outcomes[1].lines


def test_describe_suggests_the_nearest_recipe() -> None:
    done = run("describe", "c2fmae-bb")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no recipe or method named 'c2fmae-bb'. Did you mean 'c2fmae-b'?")
