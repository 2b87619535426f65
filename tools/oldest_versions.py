"""Print the lowest supported version of each dependency, as `name==version`, for `make test-oldest`.

The versions are those of pyproject.toml: of the package and of its extras. The tools of `dev` have none: the newest
ones run the tests.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


def pin_lowest_versions(project: Mapping[str, Any]) -> list[str]:
    """Return `name==version` for all requirements, which must have the form `name>=version`."""
    extras: Mapping[str, list[str]] = project["optional-dependencies"]
    requirements = [*project["dependencies"], *(line for name in extras if name != "dev" for line in extras[name])]
    for requirement in requirements:
        if requirement.count(">=") != 1 or any(mark in requirement for mark in ",;[<!~ "):
            raise ValueError(f"{requirement}: expected name>=version")
    return [requirement.replace(">=", "==") for requirement in requirements]


if __name__ == "__main__":
    print(*pin_lowest_versions(tomllib.loads(PYPROJECT.read_text())["project"]))
