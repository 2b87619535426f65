from importlib import metadata
from pathlib import Path

import pytest

from c2fmae.doctor.installation import diagnose_installation


def test_versions_devices_and_extras_are_reported() -> None:
    diagnosis = diagnose_installation()
    findings = dict(diagnosis.findings)
    assert findings["c2fmae"] == metadata.version("c2fmae")
    assert {"python", "torch", "timm", "cpu"} <= findings.keys()
    extras = {name: text for name, text in findings.items() if name.startswith("[")}
    declared = metadata.metadata("c2fmae").get_all("Provides-Extra") or []
    assert list(extras) == [f"[{extra}]" for extra in declared]
    for name, text in extras.items():
        assert text == "ready" or text.endswith(f". Run: pip install 'c2fmae{name}'")
    assert (diagnosis.problems, diagnosis.next_command) == ([], "c2fmae view masks")


def test_an_outdated_requirement_and_a_missing_one_are_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "numpy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    requirements = ["numpy>=2", "no-such-package", 'also-missing; extra == "tb"']
    monkeypatch.setattr(metadata, "requires", lambda _: requirements)
    diagnosis = diagnose_installation()
    assert diagnosis.problems == [
        "numpy 1.0 is installed (expected >=2). Run: pip install --upgrade c2fmae",
        "no-such-package is missing. Run: pip install --upgrade c2fmae",
    ]
    assert diagnosis.next_command == "c2fmae doctor  # after the fixes"
    findings = dict(diagnosis.findings)
    assert findings["no-such-package"] == "missing"
    assert findings["[tb]"] == "also-missing is missing. Run: pip install 'c2fmae[tb]'"
