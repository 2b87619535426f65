"""Colours of things and of inks: arrays [colour, 3] in [0, 1]."""

import numpy as np

from c2fmae.data.generated.arrays import FloatArray


def _colours(hex_codes: str) -> FloatArray:
    channels = np.frombuffer(bytes.fromhex(hex_codes), np.uint8).astype(np.float32) / 255
    return channels.reshape(-1, 3)


PALETTE = _colours("e8604f f0b83d 2f8f8c 2c4a7c 8a4a80 f3e3c3 7c9f6b 6fb0dc b9623c e798a2 8fd0b0 45464f f08a38 d9d4e8")
GARISH = _colours("ff00c8 39ff14 00f0ff fff200 7a00ff ff3b00 1400ff 000000 c6ff00 ff0055")
DARK, LIGHT = _colours("2b2a33 f7f1e3")
DARK_INKS = _colours("1b1f5e 5a1846 0b5351 6b2d00 3d0e61 14452f")
PALE_INKS = _colours("ffd9a0 f7a1c4 c9f2c7 ffef9f b8e0ff f4c7ff")
