"""Names of ImageNet-C: corruptions, their groups and severities.

>>> select_corruptions(["weather", "contrast"])
('snow', 'frost', 'fog', 'brightness', 'contrast')
"""

from collections.abc import Collection, Mapping

from c2fmae.core.errors import unknown_name_error

CORRUPTION_GROUPS: Mapping[str, tuple[str, ...]] = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    "extra": ("speckle_noise", "gaussian_blur", "spatter", "saturate"),
}
"""All 19 corruptions in the order of the benchmark; the last four are for tuning and not part of mCE."""

CORRUPTIONS = tuple(name for group in ("noise", "blur", "weather", "digital") for name in CORRUPTION_GROUPS[group])
"""The 15 corruptions that mCE averages."""

EXTRA_CORRUPTIONS = CORRUPTION_GROUPS["extra"]

SEVERITIES = (1, 2, 3, 4, 5)

CENTRE_CROP_RATIO = 224 / 256
"""Fraction of the shorter side that is cropped for ImageNet-C."""


def select_corruptions(names: Collection[str]) -> tuple[str, ...]:
    """Return the corruptions given by name or by group, in the order of the benchmark."""
    known = (*CORRUPTION_GROUPS, *CORRUPTIONS, *EXTRA_CORRUPTIONS)
    for name in names:
        if name not in known:
            raise unknown_name_error("corruption", name, known)
    selected = {member for name in names for member in CORRUPTION_GROUPS.get(name, (name,))}
    return tuple(name for name in (*CORRUPTIONS, *EXTRA_CORRUPTIONS) if name in selected)
