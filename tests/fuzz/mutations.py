"""Damage to files and documents, drawn from a seeded generator."""

import json
import struct
from collections.abc import Iterator
from copy import deepcopy
from random import Random
from typing import Any

INTERESTING_NUMBERS = (0, 1, 2, 127, 255, 256, 65_535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
MARKERS = (b"\0", b"\xff", b"\n", b"9", b"-", b"[", b"{", b'"', b"e", b".", b"../", b"\xed\xa0\x80", b"NaN", b"1e999")
STRINGS = ("", "\0", "a\0b", "x" * 5000, "../..", "/", "\ud800", "é" * 300, "1", "nan", "~", "%s{}", "2001-99-99")
CONTAINERS: tuple[Any, ...] = ([], {}, [[]], [None], {"": None}, {"name": 1}, {"a": {"b": [1, {"c": []}]}}, [{}, "x"])
DIGITS = (b"9", b"0", b"-1", b"1e9", b"99999999999999999999", b"")


def mutate_bytes(data: bytes, rng: Random) -> bytes:
    """Return damaged data: one to four of flipped bits, cuts, copies, inserted markers and changed numbers."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(_BYTE_MUTATIONS)(data or b"\0", rng)
    return data


def mutate_document(document: Any, rng: Random) -> Any:
    """Return a copy of a JSON document with one to three values replaced, removed, renamed, moved or nested."""
    document = deepcopy(document)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        document = _mutate_node(document, rng)
    return document


def encode_json(document: Any, rng: Random) -> bytes:
    """Return a document as JSON, which is damaged too in one of ten cases."""
    text = json.dumps(document, ensure_ascii=rng.random() < 0.9).encode(errors="surrogatepass")
    return mutate_bytes(text, rng) if rng.random() < 0.1 else text


def draw_value(rng: Random, value: Any = None) -> Any:
    """Return a value that is likely to be unexpected in the place of another."""
    return rng.choice(
        (
            lambda: None,
            lambda: rng.choice((True, False)),
            lambda: rng.choice((-1, 1)) * rng.choice((*INTERESTING_NUMBERS, 10**30, 10**400)),
            lambda: rng.choice((0.0, -0.5, 1e-320, 1e308, float("nan"), float("inf"), -float("inf"))),
            lambda: rng.choice(STRINGS),
            lambda: deepcopy(rng.choice(CONTAINERS)),
            lambda: _nest(rng.choice((3, 70, 120)), rng),
            lambda: [value] * rng.choice((1, 2, 300)),
            lambda: {"name": value, "value": value},
            lambda: str(value),
            lambda: value * 2 if isinstance(value, list | str) and len(value) < 5000 else [value, value],
            lambda: -value if isinstance(value, int | float) else len(str(value)),
            lambda: value + rng.choice((-1, 0.5, 1)) if isinstance(value, int | float) else [[value]],
        )
    )()


def _nest(depth: int, rng: Random) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def _flip_bits(data: bytes, rng: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 20))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(data: bytes, rng: Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _cut_out(data: bytes, rng: Random) -> bytes:
    start, size = _draw_block(data, rng)
    return data[:start] + data[start + size :]


def _duplicate(data: bytes, rng: Random) -> bytes:
    start, size = _draw_block(data, rng)
    times = rng.choice((1, 1, 2, 50))
    return data[: start + size] + times * data[start : start + min(size, 10_000)] + data[start + size :]


def _move(data: bytes, rng: Random) -> bytes:
    start, size = _draw_block(data, rng)
    target = rng.randrange(len(data))
    return data[:target] + data[start : start + size] + data[target + size :]


def _insert_marker(data: bytes, rng: Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + rng.choice(MARKERS) * rng.choice((1, 1, 2, 100, 5000)) + data[start:]


def _write_number(data: bytes, rng: Random) -> bytes:
    form = rng.choice((">H", "<H", ">I", "<I", ">Q", "<Q"))
    size = struct.calcsize(form)
    start = rng.randrange(min(len(data), rng.choice((64, 1024, 1 << 30))))
    number = rng.choice(INTERESTING_NUMBERS) & ((1 << 8 * size) - 1)
    return data[:start] + struct.pack(form, number) + data[start + size :]


def _change_digit(data: bytes, rng: Random) -> bytes:
    digits = [position for position, byte in enumerate(data[: 1 << 16]) if 48 <= byte <= 57]
    if not digits:
        return _flip_bits(data, rng)
    position = rng.choice(digits)
    return data[:position] + rng.choice(DIGITS) + data[position + 1 :]


def _draw_block(data: bytes, rng: Random) -> tuple[int, int]:
    start = rng.randrange(len(data))
    return start, rng.randrange(1, rng.choice((2, 9, 513, len(data) + 1)) + 1)


_BYTE_MUTATIONS = (_flip_bits, _truncate, _cut_out, _duplicate, _move, _insert_marker, _write_number, _change_digit)


def _mutate_node(document: Any, rng: Random) -> Any:
    places = list(_walk(document))
    if not places or rng.random() < 0.01:
        return draw_value(rng, document)
    parent, key = rng.choice(places)
    action = rng.random()
    if action < 0.6:
        parent[key] = draw_value(rng, parent[key])
    elif action < 0.75:
        del parent[key]
    elif action < 0.85:
        other, other_key = rng.choice(places)
        parent[key] = deepcopy(other[other_key])
    elif isinstance(parent, list):
        parent.insert(rng.randrange(len(parent) + 1), deepcopy(parent[key]) if action < 0.93 else draw_value(rng))
    else:
        parent[rng.choice(("", "name", "x" * 300, f"{key}s", f"{key}"[:-1], "a\0b", "1"))] = (
            parent.pop(key) if action < 0.93 else draw_value(rng, parent[key])
        )
    return document


def _walk(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each place of a document: a list or dict, and an index or key of it."""
    if isinstance(node, dict | list):
        for key, child in list(node.items() if isinstance(node, dict) else enumerate(node)):
            yield node, key
            yield from _walk(child)
