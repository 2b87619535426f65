"""Versions and devices, and requirements and extras that are missing; nothing is imported before it is checked."""

import os
import platform
from importlib import metadata
from typing import TYPE_CHECKING

from c2fmae.core.text import format_count
from c2fmae.doctor.diagnosis import Diagnosis

if TYPE_CHECKING:
    from packaging.requirements import Requirement


def diagnose_installation() -> Diagnosis:
    """Report the versions of required packages, the devices that torch sees, and which extras are installed."""
    from packaging.requirements import Requirement

    requirements = [Requirement(line) for line in metadata.requires("c2fmae") or []]
    required = [requirement for requirement in requirements if requirement.marker is None]
    findings = [
        ("c2fmae", metadata.version("c2fmae")),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        *((requirement.name, _installed_version(requirement.name) or "missing") for requirement in required),
    ]
    problems = [f"{problem}. Run: pip install --upgrade c2fmae" for problem in _describe_problems(required)]
    try:
        findings += _describe_devices()
    except Exception as error:  # whatever a broken torch raises
        problems.append(f"torch cannot be imported: {error}. Reinstall it for this machine: https://pytorch.org")
    for extra in metadata.metadata("c2fmae").get_all("Provides-Extra") or []:
        extra_requirements = [r for r in requirements if r.marker is not None and r.marker.evaluate({"extra": extra})]
        missing = ", ".join(_describe_problems(extra_requirements))
        findings.append((f"[{extra}]", f"{missing}. Run: pip install 'c2fmae[{extra}]'" if missing else "ready"))
    command = "c2fmae doctor  # after the fixes" if problems else "c2fmae view masks"
    return Diagnosis(findings, problems, command, [])


def _describe_problems(requirements: "list[Requirement]") -> list[str]:
    """Return a phrase for each requirement that is missing or has an unsupported version."""
    problems = []
    for requirement in requirements:
        installed = _installed_version(requirement.name)
        if installed is None:
            problems.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(installed, prereleases=True):
            problems.append(f"{requirement.name} {installed} is installed (expected {requirement.specifier})")
    return problems


def _installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _describe_devices() -> list[tuple[str, str]]:
    import torch

    devices = [
        ("cpu", f"{format_count(os.cpu_count() or 1, 'core')}, {format_count(torch.get_num_threads(), 'torch thread')}")
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append((f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"))
    if not torch.cuda.is_available():
        build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        devices.append(("cuda", f"none (torch is built {build})"))
    return devices
