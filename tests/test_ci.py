"""What CI runs: pinned actions, and the lowest version of each dependency."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tools.oldest_versions import PYPROJECT, pin_lowest_versions

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("workflow", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=lambda path: path.name)
def test_workflows_may_only_read_and_use_actions_by_commit(workflow: Path) -> None:
    text = workflow.read_text()
    assert "permissions:\n  contents: read\n" in text
    actions = re.findall(r"uses: *(.*)", text)
    assert actions
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v[\d.]+", action) for action in actions), actions


def test_the_lowest_version_of_every_dependency_is_tested() -> None:
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    extras = project["optional-dependencies"]
    names = {Requirement(line).name for key in extras if key != "dev" for line in extras[key]}
    names |= {Requirement(line).name for line in project["dependencies"]}
    pins = [Requirement(pin) for pin in pin_lowest_versions(project)]
    assert {pin.name for pin in pins} == names
    assert all([specifier.operator for specifier in pin.specifier] == ["=="] for pin in pins)


@pytest.mark.parametrize("requirement", ["torch", "torch~=2.11", "torch>=2.11,<3", "torch[cuda]>=2.11"])
def test_a_dependency_without_a_plain_lowest_version_is_refused(requirement: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{requirement}: expected name>=version")):
        pin_lowest_versions({"dependencies": [requirement], "optional-dependencies": {}})
