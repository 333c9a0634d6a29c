"""Integers to bytes and back, on every machine alike: bits side by side, and a range coder (Martin 1979)."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from itertools import chain, repeat

import numpy as np

TOP, BOTTOM = 1 << 64, 1 << 48
"""The range is kept between these; two bytes leave whenever it falls below BOTTOM."""


class CorruptError(ValueError):
    """Bytes that no encoder writes."""


def pack_bits(values: np.ndarray, bits: int) -> bytes:
    """Non-negative integers `[F]` below 2^bits, `bits` each, the highest first; zeros fill the last byte."""
    places = np.arange(bits - 1, -1, -1)
    return np.packbits((values[:, None] >> places & 1).astype(np.uint8)).tobytes()


def unpack_bits(data: bytes, bits: int, count: int) -> np.ndarray:
    """The `count` integers, int64, that `pack_bits` wrote; CorruptError for any other bytes."""
    if len(data) != -(-count * bits // 8):
        raise CorruptError(f"{len(data)} bytes do not hold {count} numbers of {bits} bits")
    unpacked = np.unpackbits(np.frombuffer(data, np.uint8))
    if unpacked[count * bits :].any():
        raise CorruptError("bits behind the last number are set")
    places = 1 << np.arange(bits - 1, -1, -1)
    return unpacked[: count * bits].reshape(count, bits) @ places


def encode_intervals(starts: Iterable[int], frequencies: Iterable[int], totals: Iterable[int]) -> bytes:
    """Code symbols that hold `[start, start + frequency)` of `total`, at most 2^32, into few bytes."""
    out = bytearray()
    low, width = 0, TOP
    for start, frequency, total in zip(starts, frequencies, totals, strict=True):
        share = width // total
        low += share * start
        width = share * frequency
        if low >= TOP:
            low -= TOP
            add_carry(out)
        while width < BOTTOM:
            out += (low >> 48).to_bytes(2, "big")
            low = low << 16 & TOP - 1
            width <<= 16
    for kept in range(0, 65, 8):  # the fewest bytes of any number in [low, low + width)
        value = -(-low >> 64 - kept) << 64 - kept
        if value < low + width:
            break
    if value >= TOP:
        value -= TOP
        add_carry(out)
    # The decoder reads zeros behind the end, so that they need not be written.
    return bytes(out + value.to_bytes(8, "big")).rstrip(b"\0")


def add_carry(out: bytearray) -> None:
    """Add one to the number that the bytes written so far are."""
    last = len(out) - 1
    while out[last] == 255:
        out[last] = 0
        last -= 1
    out[last] += 1


class RangeDecoder:
    """Reads back what `encode_intervals` wrote; any other bytes give symbols too, or CorruptError."""

    def __init__(self, data: bytes):
        padded = data + bytes(8 + len(data) % 2)
        self.words = chain(struct.unpack(f">{len(padded) // 2}H", padded), repeat(0))
        self.width, self.offset = TOP, 0
        for _ in range(4):
            self.offset = self.offset << 16 | next(self.words)

    def symbol(self, cumulative: np.ndarray) -> int:
        """The next symbol; `cumulative` `[V]` are the sums of the frequencies up to and with each symbol."""
        share = self.width // int(cumulative[-1])
        # The remainder of the division belongs to no symbol.
        symbol = int(cumulative.searchsorted(self.offset // share, side="right"))
        if symbol == len(cumulative):
            raise CorruptError("bytes that no encoder writes")
        start = int(cumulative[symbol - 1]) if symbol else 0
        self.offset -= share * start
        self.width = share * (int(cumulative[symbol]) - start)
        while self.width < BOTTOM:
            self.offset = self.offset << 16 | next(self.words)
            self.width <<= 16
        return symbol
