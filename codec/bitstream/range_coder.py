"""Bit packing and a range coder (Martin 1979), with the same bytes on every machine."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from itertools import chain, repeat

import numpy as np

TOP, BOTTOM = 1 << 64, 1 << 48
"""Bounds of the range; two bytes are written whenever it falls below BOTTOM."""


class CorruptError(ValueError):
    """Invalid bytes, which no encoder writes."""


def pack_bits(values: np.ndarray, bits: int) -> bytes:
    """Pack integers `[F]` in [0, 2^bits), most significant bit first; zeros fill the last byte."""
    places = np.arange(bits - 1, -1, -1)
    return np.packbits((values[:, None] >> places & 1).astype(np.uint8)).tobytes()


def unpack_bits(data: bytes, bits: int, count: int) -> np.ndarray:
    """Inverse of `pack_bits`: `count` integers, int64; CorruptError for any other bytes."""
    if len(data) != -(-count * bits // 8):
        raise CorruptError(f"{len(data)} bytes do not hold {count} numbers of {bits} bits")
    unpacked = np.unpackbits(np.frombuffer(data, np.uint8))
    if unpacked[count * bits :].any():
        raise CorruptError("bits behind the last number are set")
    places = 1 << np.arange(bits - 1, -1, -1)
    return unpacked[: count * bits].reshape(count, bits) @ places


def encode_intervals(starts: Iterable[int], frequencies: Iterable[int], totals: Iterable[int]) -> bytes:
    """Range-encode symbols with the intervals `[start, start + frequency)` of `total`, at most 2^32."""
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
    for size in range(0, 65, 8):  # bits of the shortest number in [low, low + width)
        value = -(-low >> 64 - size) << 64 - size
        if value < low + width:
            break
    if value >= TOP:
        value -= TOP
        add_carry(out)
    # The decoder reads zeros beyond the end, so trailing zeros are omitted.
    return bytes(out + value.to_bytes(8, "big")).rstrip(b"\0")


def add_carry(out: bytearray) -> None:
    """Add one to the bytes written so far, as a big-endian number."""
    last = len(out) - 1
    while out[last] == 255:
        out[last] = 0
        last -= 1
    out[last] += 1


class RangeDecoder:
    """Range decoder, inverse of `encode_intervals`; other bytes give arbitrary symbols or CorruptError."""

    def __init__(self, data: bytes):
        padded = data + bytes(8 + len(data) % 2)
        self.words = chain(struct.unpack(f">{len(padded) // 2}H", padded), repeat(0))
        self.width, self.offset = TOP, 0
        for _ in range(4):
            self.offset = self.offset << 16 | next(self.words)

    def symbol(self, cumulative: np.ndarray) -> int:
        """Decode the next symbol; `cumulative` `[V]` is the inclusive cumulative sum of the frequencies."""
        share = self.width // int(cumulative[-1])
        # The remainder of the division is assigned to no symbol.
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
