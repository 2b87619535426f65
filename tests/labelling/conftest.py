"""Fixtures of all tests of labellers."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from c2fmae.labelling import quality
from tests.labelling.tiny_models import BUILDERS


@pytest.fixture(autouse=True)
def small_quality_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw few and small images on the page of each labelling, which else takes longer than the labelling."""
    monkeypatch.setattr(quality, "_NUM_EVEN", 2)
    monkeypatch.setattr(quality, "_NUM_CHOSEN", 0)
    monkeypatch.setattr(quality, "_TILE_SIDE", 16)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from the name of a tiny model to its folder, which is written at the first call."""
    root, folders = tmp_path_factory.mktemp("tiny_models"), dict[str, Path]()

    def get_folder(name: str) -> Path:
        if name not in folders:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                BUILDERS[name](root / name)
            folders[name] = root / name
        return folders[name]

    return get_folder


@pytest.fixture(scope="session")
def tiny_owlv2(tiny_model: Callable[[str], Path]) -> Path:
    """The folder of a tiny OWLv2."""
    return tiny_model("owlv2")


@pytest.fixture(scope="session")
def tiny_sam_hq(tiny_model: Callable[[str], Path]) -> Path:
    """The folder of a tiny SAM-HQ."""
    return tiny_model("sam-hq")


@pytest.fixture(scope="session")
def tiny_mask2former(tiny_model: Callable[[str], Path]) -> Path:
    """The folder of a tiny Mask2Former."""
    return tiny_model("mask2former")


@pytest.fixture(scope="session")
def tiny_oneformer(tiny_model: Callable[[str], Path]) -> Path:
    """The folder of a tiny OneFormer."""
    return tiny_model("oneformer")


@pytest.fixture(scope="session")
def tiny_eomt(tiny_model: Callable[[str], Path]) -> Path:
    """The folder of a tiny EoMT."""
    return tiny_model("eomt")


@pytest.fixture(scope="session")
def tiny_sam3(tiny_model: Callable[[str], Path]) -> Path:
    """The folder of a tiny SAM 3."""
    return tiny_model("sam3")


@pytest.fixture(scope="session")
def tiny_rf_detr(tiny_model: Callable[[str], Path]) -> Path:
    """The folder of a tiny RF-DETR."""
    return tiny_model("rf-detr")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail at every connection and every look-up of a host."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a connection was opened, or a host looked up")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
