"""What the documentation refers to is there. Its examples run as doctests."""

import re
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


def test_commands_in_the_documentation_exist() -> None:
    from c2fmae_cli import app
    from typer.main import get_command

    commands = get_command(app)
    for page in PAGES:
        for words in re.findall(r"c2fmae ([a-z]+(?: [a-z]+)?)\b", " ".join(re.findall(r"`([^`]+)`", page.read_text()))):
            first, _, second = words.partition(" ")
            group = commands.commands[first]  # type: ignore[attr-defined]
            assert not hasattr(group, "commands") or second in group.commands
