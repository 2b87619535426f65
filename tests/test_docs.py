"""What the documentation refers to is there. Its examples run as doctests."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_has_a_gap(page: Path) -> None:
    assert not re.search(r"@@|TODO|TBD|XXX", page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_are_named_exist(page: Path) -> None:
    from c2fmae_cli import app
    from typer.main import get_command

    commands = get_command(app).commands  # type: ignore[attr-defined]
    for first, second in re.findall(r"(?:^|`)c2fmae ([a-z]+)(?: ([a-z-]+))?", page.read_text(), re.MULTILINE):
        assert first in commands
        group = commands[first]
        is_complete = not hasattr(group, "commands") or (not second and group.invoke_without_command)
        assert is_complete or second in group.list_commands(None)


def test_the_figure_of_layers_shows_the_import_contract() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    expected = [re.findall(r"[\w.]+", layer.replace("c2fmae.", "")) for layer in contract["layers"]]
    figure = (ROOT / "docs" / "figures" / "layers.svg").read_text()
    rows: dict[int, list[str]] = {}
    for y, name in re.findall(r'class="name" x="\d+" y="(\d+)">(\w+)<', figure):
        rows.setdefault(int(y), []).append(name)
    assert [rows[y] for y in sorted(rows)] == expected


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    if page.name == "renamed.md":  # the first column and the headings name files of version 0.1
        text = "\n".join(line.partition(" | ")[2] for line in text.splitlines())
    for path in re.findall(r"`((?:c2fmae|cli|docs|tests|tools|benchmarks)/[\w/]+\.\w+)", text):
        assert (ROOT / path).exists(), path
