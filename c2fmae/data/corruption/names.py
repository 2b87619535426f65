"""The names of ImageNet-C: what is done to photos, in which groups, how badly.

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
"""All 19 in the order in which the benchmark lists them; the last four are meant for tuning, and count in no mCE."""

CORRUPTIONS = tuple(name for group in ("noise", "blur", "weather", "digital") for name in CORRUPTION_GROUPS[group])
"""The 15 of which mCE is the mean."""

EXTRA_CORRUPTIONS = CORRUPTION_GROUPS["extra"]

SEVERITIES = (1, 2, 3, 4, 5)

CENTRE_CROP_RATIO = 224 / 256
"""Share of the shorter side that ImageNet-C shows."""


def select_corruptions(names: Collection[str]) -> tuple[str, ...]:
    """Return the corruptions that are meant by their own names or their groups', in the order of the benchmark."""
    known = (*CORRUPTION_GROUPS, *CORRUPTIONS, *EXTRA_CORRUPTIONS)
    for name in names:
        if name not in known:
            raise unknown_name_error("corruption", name, known)
    meant = {one for name in names for one in CORRUPTION_GROUPS.get(name, (name,))}
    return tuple(name for name in (*CORRUPTIONS, *EXTRA_CORRUPTIONS) if name in meant)
