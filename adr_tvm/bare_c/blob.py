"""The constants of a network as one file, ``weights.bin``, in place of arrays (``--weights blob``).

A header of 16 bytes, then each constant at a multiple of 16 bytes, zeros between; little-endian. The header is four
uint32: ``MAGIC``, bytes of the whole file, CRC-32 of all that follows the header, 0. Where each constant is stands in
the generated ``weights.h``, and the checksum in ``model.h``.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

ALIGNMENT = 16
HEADER_BYTES = 16
MAGIC = 0x57524441  # "ADRW"


def offsets(constants: Mapping[str, np.ndarray]) -> tuple[dict[str, int], int]:
    """(byte where each constant starts, size of the file)."""
    found, at = {}, HEADER_BYTES
    for name, array in constants.items():
        found[name] = at
        at += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    return found, at


def blob(constants: Mapping[str, np.ndarray]) -> bytes:
    """The file."""
    places, size = offsets(constants)
    content = bytearray(size)
    for name, array in constants.items():
        data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
        content[places[name] : places[name] + len(data)] = data
    header = np.array([MAGIC, size, checksum(content), 0], "<u4").tobytes()
    return header + bytes(content[HEADER_BYTES:])


def checksum(content: bytes | bytearray) -> int:
    """CRC-32 of what follows the header."""
    return zlib.crc32(memoryview(content)[HEADER_BYTES:])
