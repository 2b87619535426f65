from dataclasses import dataclass, field

import pytest

from c2fmae.config.masked_method import MaskedConfig
from c2fmae.core.errors import UserError
from c2fmae.methods import build_method
from c2fmae.models.targets import TARGETS, PixelTarget
from tests.methods.tiny_methods import make_tiny_config


@pytest.fixture
def blurred_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class BlurredPixels(PixelTarget):
        """Blurred pixels."""

        radius: int = field(default=1, kw_only=True)

    monkeypatch.setattr(TARGETS, "_entries", dict(TARGETS._entries))
    monkeypatch.setattr(TARGETS, "_summaries", dict(TARGETS._summaries))
    TARGETS.register("blurred_pixels")(BlurredPixels)


@pytest.mark.usefixtures("blurred_pixels")
def test_options_of_a_target_reach_it_and_survive_yaml() -> None:
    config = make_tiny_config("c2fmae", "targets.rgb=[{name: blurred_pixels, options: {radius: 3}}, pixels]")
    config = MaskedConfig.from_dict(config.model_dump(mode="json"))
    objectives = build_method(config).objectives
    assert list(objectives) == ["semantic", "instance", "rgb", "rgb_pixels"]
    assert objectives["rgb"].target == TARGETS.get("blurred_pixels")(3, 16, radius=3)
    assert config.model_dump(mode="json")["targets"]["rgb"][1] == {"name": "pixels", "options": {}}


def test_channels_and_patch_are_no_options() -> None:
    with pytest.raises(UserError) as caught:
        make_tiny_config("c2fmae", "targets.rgb=[{name: pixels, options: {patch: 8}}]")
    assert str(caught.value).endswith("targets.rgb.0.options.patch: target 'pixels' has no such option. Options: none")
