"""Damage to files, as a disk, an editor, a script or an attacker does it; all of it follows from a seed."""

import gzip
import json
import random
import re
from collections.abc import Callable
from typing import Any

ODD_VALUES: list[Any] = [
    None, True, -1, 0, 10**18, 10**400, -1e-300, 5e-324, 1e308, float("nan"), float("inf"), "", "0.0", "x" * 3000,
    "../../../etc/passwd", "/dev/null", "\u202e\u2028\x00", "=1+1", [], {}, [[[]]], ["a", 1], {"a": {"b": None}},
]  # fmt: skip
_ODD_NUMBERS = [
    b"-1", b"0", b"1e999", b"-1e999", b"NaN", b"1e-300", b"9" * 400, b"9" * 5000, b"0x" + b"f" * 5000, b'"3"', b"null",
    b"[]", b"1_0", b"0.0.0",
]  # fmt: skip
_ODD_BYTES = [
    b"\x00", b"\xff", b"\xb2", b'"', b"'", b"\r", b"\n", b"\t", b",", b"\\", b"{", b"]", b"\xed\xa0\x80", b"\\ud800",
    b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"&a [*a]", b"!!bool maybe", b"2024-13-45", b"%", b"../",
]  # fmt: skip
_ODD_FILES = [
    b"", b"\n", b"null", b"[]", b"{}", b"3", b'"text"', b"[" * 20_000, b'{"a":' * 20_000, b"\xff\xfe" + b"a\x00" * 9,
    b"PK\x03\x04", b"\x1f\x8b\x08\x00", b"\x80\x04\x95", b"RIFF\xff\xff\xff\xffWAVE", b"fLaC", b"OggS", b"ID3",
    b"\x00" * 300,
]  # fmt: skip
_NUMBER = re.compile(rb"-?\d+(\.\d+)?")


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return data that is damaged in one to three places; gzipped data inside of its compression or outside."""
    if data[:2] == b"\x1f\x8b" and rng.random() < 0.7:
        return gzip.compress(damaged(gzip.decompress(data), rng), mtime=0)
    for _ in range(rng.choice((1, 1, 2, 3))):
        data = rng.choice(_OPERATIONS)(data, rng)
    return data


def _span(data: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 2, 4, 30, 500)))


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 5))):
        if changed:
            # Headers are hit as often as everything behind them.
            place = rng.randrange(min(len(changed), rng.choice((64, 10**9))))
            changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _delete(data: bytes, rng: random.Random) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + data[end:]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    start, end = _span(data, rng)
    return data[:end] + data[start:]


def _insert(data: bytes, rng: random.Random) -> bytes:
    start, _ = _span(data, rng)
    return data[:start] + rng.choice(_ODD_BYTES) + data[start:]


def _cut_off(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _change_number(data: bytes, rng: random.Random) -> bytes:
    numbers = list(_NUMBER.finditer(data))
    if not numbers:
        return data
    number = rng.choice(numbers)
    return data[: number.start()] + rng.choice(_ODD_NUMBERS) + data[number.end() :]


def _change_lines(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    if len(lines) > 1:
        line = lines.pop(rng.randrange(len(lines)))
        for _ in range(rng.choice((0, 1, 2))):
            lines.insert(rng.randrange(len(lines) + 1), line)
    return b"".join(lines)


def _replace(data: bytes, rng: random.Random) -> bytes:
    return rng.choice(_ODD_FILES)


def _change_value(data: bytes, rng: random.Random) -> bytes:
    """Give a value of a JSON document, or of a line of JSON, another type."""
    lines = data.split(b"\n")
    for chosen in (None, rng.randrange(len(lines))):
        try:
            document = json.loads(data if chosen is None else lines[chosen])
        except (ValueError, RecursionError):
            continue
        changed = json.dumps(_with_odd_value(document, rng), ensure_ascii=False).encode("utf-8", "backslashreplace")
        return changed if chosen is None else b"\n".join([*lines[:chosen], changed, *lines[chosen + 1 :]])
    return data


def _with_odd_value(value: Any, rng: random.Random) -> Any:
    if not (isinstance(value, dict | list) and value) or rng.random() < 0.15:
        return rng.choice(ODD_VALUES)
    key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
    kept = dict(value) if isinstance(value, dict) else list(value)
    if isinstance(kept, dict) and rng.random() < 0.2:
        del kept[key]
    else:
        kept[key] = _with_odd_value(value[key], rng)
    return kept


# Changed values are the likeliest: they get past the parsers.
_OPERATIONS: list[Callable[[bytes, random.Random], bytes]] = [
    *[_change_value] * 8, *[_change_number] * 4, *[_flip] * 4, _delete, _repeat, _insert, _insert, _cut_off,
    _change_lines, _replace,
]  # fmt: skip
