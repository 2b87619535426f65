"""`c2fmae doctor`: what is installed here, what is missing, and how to get it."""

import os
import platform
import sys
from importlib import metadata

import typer


def doctor() -> None:
    """Report versions, devices and missing extras; ends with 1 if something that is required is not there."""
    from packaging.requirements import Requirement

    requirements = [Requirement(line) for line in metadata.requires("c2fmae") or []]
    required = [requirement for requirement in requirements if requirement.marker is None]
    print(f"{'c2fmae':16s}{metadata.version('c2fmae')}")
    print(f"{'python':16s}{platform.python_version()} on {platform.platform()}")
    for requirement in required:
        print(f"{requirement.name:16s}{_version(requirement.name) or 'missing'}")

    problems = [_lack(requirement.name, str(requirement.specifier)) for requirement in required]
    problems = [problem for problem in problems if problem]
    try:
        _print_devices()
    except Exception as error:  # a broken torch is what this command is there to find
        problems.append(f"torch cannot be imported: {error}")

    for extra in metadata.metadata("c2fmae").get_all("Provides-Extra") or []:
        wanted = [r for r in requirements if r.marker is not None and r.marker.evaluate({"extra": extra})]
        lacks = [_lack(r.name, str(r.specifier)) for r in wanted if r not in required]
        missing = ", ".join(lack for lack in lacks if lack)
        state = f"{missing}; get it by: pip install 'c2fmae[{extra}]'" if missing else "ready"
        print(f"{f'[{extra}]':16s}{state}")

    for problem in problems:
        print(f"problem: {problem}; mend it by: pip install --upgrade c2fmae", file=sys.stderr)
    if problems:
        raise typer.Exit(1)
    print("next: c2fmae view masks")


def _lack(name: str, specifier: str) -> str:
    """Say what is wrong with an installed version, or nothing."""
    from packaging.specifiers import SpecifierSet

    installed = _version(name)
    if installed is None:
        return f"{name} is missing"
    if not SpecifierSet(specifier).contains(installed, prereleases=True):
        return f"{name} {installed} is not {specifier}"
    return ""


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _print_devices() -> None:
    import torch

    print(f"{'cpu':16s}{os.cpu_count()} cores, {torch.get_num_threads()} threads used by torch")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        print(f"{f'cuda:{index}':16s}{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        print(f"{'cuda':16s}none ({built})")
