"""A second decoder of rdq files, from `docs/rdq-format.md` alone: slow, and nothing of the package."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from pathlib import Path

import numpy as np

f32 = np.float32
EIGHTHS = (1, 1.0905077, 1.1892071, 1.2968396, 1.4142135, 1.5422108, 1.6817929, 1.8340081)
QUANTIZER = {1: (0,), 4: (0, 0, 1, 1), 8: (0, 1, 0, 1, 0, 1, 0, 1)}
NEXT = {
    1: ((0, 0),),
    4: ((0, 2), (2, 0), (1, 3), (3, 1)),
    8: ((0, 2), (5, 7), (1, 3), (6, 4), (2, 0), (4, 6), (3, 1), (7, 5)),
}


class Bytes:
    """Bytes read one after the other."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def take(self, count: int) -> bytes:
        self.place += count
        return self.data[self.place - count : self.place]

    def varint(self) -> int:
        value = shift = 0
        while True:
            (byte,) = self.take(1)
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value


def read_file(path: Path) -> dict[str, np.ndarray]:
    """Name -> float32 weights of each coded tensor of a file."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    head, body = data[: 8 + length], data[8 + length :]
    content = json.loads(head[8:])
    about = content.pop("__metadata__")
    assert about["rdq"] == "1"
    assert zlib.crc32(head.replace(about["rdq_crc"].encode(), b"00000000")) == int(about["rdq_crc"], 16)
    tables = read_tables(zlib.decompress(base64.b64decode(about["rdq_tables"])))
    plain, out = about["rdq_plain"].split(), {}
    for name, entry in content.items():
        payload = body[slice(*entry["data_offsets"])]
        if name.endswith("_rdq"):
            out[name[:-4]] = read_payload(payload, tables)
        else:
            assert zlib.crc32(payload) == int(plain.pop(0), 16)
    return out


def read_tables(data: bytes) -> list[list[list[int]]]:
    """frequencies[class][quantizer][symbol]"""
    source, tables, last = Bytes(data), [], []
    for _ in range(96):
        (b,) = source.take(1)
        table = [0] * 256
        if b == 0:
            table[127], table[255] = 4095, 1
        elif b == 1:
            table = last
        else:
            table[255] = source.varint()
            for k in range(1, b - 1):
                table[127 + k] = table[127 - k] = source.varint()
            table[127] = 4096 - sum(table)
            last = table
        tables.append(table)
    return [[tables[c], tables[48 + c]] for c in range(48)]


def read_payload(data: bytes, tables: list[list[list[int]]]) -> np.ndarray:
    assert zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "little")
    source = Bytes(data)
    assert source.take(4) == b"rdq\x01"
    kind, step, crc = struct.unpack("<BfI", source.take(9))
    assert crc == zlib.crc32(b"".join(struct.pack("<256H", *t) for pair in tables for t in pair))
    stack, rows, columns, panel, lanes, side = (source.varint() for _ in range(6))
    words = [source.varint() for _ in range(-(-columns // panel))]
    centroids = struct.unpack("<8e", source.take(16))
    row_scale, column_scale, row_spread, column_spread = side_vectors(source.take(side), rows, columns)
    states = kind & 127
    out = np.zeros((rows, columns), np.float32)
    for number, count in enumerate(words):
        first = number * panel
        width = min(panel, columns - first)
        x = list(struct.unpack(f"<{min(lanes, width)}I", source.take(4 * min(lanes, width))))
        stream = list(struct.unpack(f"<{count}H", source.take(2 * count)))
        spreads = row_spread, column_spread[first : first + width]
        for (row, column), (k, quantizer) in read_panel(x, stream, spreads, states, tables).items():
            v = abs(k) if states == 1 else 2 * abs(k) - (quantizer and k != 0)
            u = f32((k > 0) - (k < 0)) * (f32(v) - f32(centroids[4 * quantizer + min(abs(k), 3)]))
            across = factor(column_scale[first + column])
            out[row, first + column] = (u * (f32(step) * factor(row_scale[row]))) * across
    assert source.place + 4 == len(data)
    out = out.reshape(stack, rows // stack, columns)
    out = out.transpose(0, 2, 1) if kind > 127 else out
    return out if stack > 1 else out[0]


def factor(scale: int) -> np.float32:
    return f32(f32(EIGHTHS[(scale - 128) % 8]) * f32(2.0 ** ((scale - 128) // 8)))


def read_panel(
    x: list[int],
    words: list[int],
    spreads: tuple[list[int], list[int]],
    states: int,
    tables: list[list[list[int]]],
) -> dict[tuple[int, int], tuple[int, int]]:
    """(row, column) -> (index, quantizer)"""
    row_spread, column_spread = spreads
    words = words[::-1]
    trellis, out = [0] * len(column_spread), {}

    def refill(lane: int) -> None:
        if x[lane] < 2**16:
            x[lane] = x[lane] << 16 | words.pop()

    for row, own in enumerate(row_spread):
        for begin in range(0, len(column_spread), len(x)):
            chunk = range(begin, min(begin + len(x), len(column_spread)))
            symbols = []
            for lane, column in enumerate(chunk):
                c = min(max(own + column_spread[column] - 236, 0), 47)
                table = tables[c][QUANTIZER[states][trellis[column]]]
                slot, symbol, below = x[lane] % 4096, 0, 0
                while below + table[symbol] <= slot:
                    below += table[symbol]
                    symbol += 1
                x[lane] = table[symbol] * (x[lane] // 4096) + slot - below
                refill(lane)
                symbols.append(symbol)
            for lane, column in enumerate(chunk):
                k = symbols[lane] - 127
                if symbols[lane] == 255:
                    k = x[lane] % 512 - 255
                    x[lane] //= 512
                    refill(lane)
                out[row, column] = k, QUANTIZER[states][trellis[column]]
                trellis[column] = NEXT[states][trellis[column]][k % 2]
    assert not words
    assert set(x) == {2**16}
    return out


def side_vectors(data: bytes, rows: int, columns: int) -> list[list[int]]:
    bits, vectors = Bits(data), []
    for size in (rows, columns, rows, columns):
        bits.fresh()
        mean, vector = 2048, []
        for i in range(size):
            r = 0
            if not bits.bit(0):
                negative = bits.bit(1)
                r = 1
                while r < 127 + negative and not bits.bit(1 + min(r, 20)):
                    r += 1
                r = -r if negative else r
            vector.append(((mean + 8) // 16 + r) % 256)
            mean += (16 * vector[-1] - mean) // min(i + 1, 32)
        vectors.append(vector)
    for scale, spread in zip(vectors[:2], vectors[2:], strict=True):
        spread[:] = [(s - half // 2) % 256 for s, half in zip(spread, scale, strict=True)]
    return vectors


class Bits:
    """The adaptive binary arithmetic decoder."""

    def __init__(self, data: bytes) -> None:
        self.data = data + bytes(4)
        self.low, self.high, self.window, self.place = 0, 2**32 - 1, int.from_bytes(self.data[:4], "big"), 4

    def fresh(self) -> None:
        self.p, self.n = [32768] * 2 + [16384] * 20, [2] * 22

    def bit(self, context: int) -> int:
        w, p, n = self.high - self.low, self.p[context], self.n[context]
        middle = self.low + w // 65536 * p + w % 65536 * p // 65536
        bit = int(self.window <= middle)
        if bit:
            self.high = middle
        else:
            self.low = middle + 1
        self.p[context] = min(max(p + 2 * (65535 * bit - p) // (2 * n + 3), 64), 65471)
        self.n[context] = min(n + 1, 255)
        while self.low >> 24 == self.high >> 24:
            byte = self.data[self.place] if self.place < len(self.data) else 0
            self.low = self.low << 8 & 0xFFFFFFFF
            self.high = self.high << 8 & 0xFFFFFFFF | 255
            self.window = self.window << 8 & 0xFFFFFFFF | byte
            self.place += 1
        return bit
