"""64 bits and their checksum, protected by a convolutional code that is decoded from soft values.

Rate 1/3, constraint length 9, generators 557, 663 and 711 (octal), as in the tables of Proakis, Digital Communications,
section 8.2: free distance 18. Eight zeros end the message, so decoding starts and ends in state 0.
"""

from binascii import crc_hqx
from functools import cache

import numpy as np
from numpy.typing import NDArray

from safelight.trust.watermark.keys import ASSET_BYTES

GENERATORS = (0o557, 0o663, 0o711)
CONSTRAINT = 9
NUM_STATES = 2 ** (CONSTRAINT - 1)
NUM_BITS = 8 * (ASSET_BYTES + 2)
"""The asset id and its checksum."""
NUM_STEPS = NUM_BITS + CONSTRAINT - 1
NUM_CODED = len(GENERATORS) * NUM_STEPS


def crc16(data: bytes) -> bytes:
    """CRC-16/IBM-3740 (polynomial 0x1021, initial value 0xFFFF), also known as CCITT-FALSE."""
    return crc_hqx(data, 0xFFFF).to_bytes(2, "big")


def encode(asset: bytes) -> NDArray[np.float32]:
    """Return the (264,) coded bits of an eight-byte asset id, as -1 and 1."""
    bits = np.unpackbits(np.frombuffer(asset + crc16(asset), np.uint8)).astype(np.int64)
    coded = np.stack([np.convolve(bits, taps(generator)) % 2 for generator in GENERATORS], axis=1)
    return (2 * coded.ravel() - 1).astype(np.float32)


def taps(generator: int) -> list[int]:
    """What the newest bit, the one before it, ... contribute to a coded bit."""
    return [generator >> age & 1 for age in range(CONSTRAINT)]


def decode(soft: NDArray[np.float32]) -> tuple[bytes, bool]:
    """Find the most likely message (Viterbi 1967).

    Args:
        soft: (264,) evidence for each coded bit; positive for 1, and larger the surer.

    Returns:
        The eight-byte asset id, and whether its checksum is right.
    """
    gains = soft.reshape(NUM_STEPS, -1) @ branch_signs().T
    states = np.arange(NUM_STATES)
    # A register holds nine bits, the newest lowest. Two registers lead to each state: with and without the oldest bit.
    younger, older = states >> 1, (states | NUM_STATES) >> 1
    score = np.where(states == 0, 0.0, -np.inf)
    came_from_older = np.empty((NUM_STEPS, NUM_STATES), bool)
    for step in range(NUM_STEPS):
        without = score[younger] + gains[step, :NUM_STATES]
        with_it = score[older] + gains[step, NUM_STATES:]
        np.greater(with_it, without, out=came_from_older[step])
        score = np.maximum(without, with_it)
    bits = np.empty(NUM_STEPS, np.uint8)
    state = 0
    for step in reversed(range(NUM_STEPS)):
        bits[step] = state & 1
        state = (state | NUM_STATES if came_from_older[step, state] else state) >> 1
    message = np.packbits(bits[:NUM_BITS]).tobytes()
    asset, checksum = message[:ASSET_BYTES], message[ASSET_BYTES:]
    return asset, checksum == crc16(asset)


@cache
def branch_signs() -> NDArray[np.float64]:
    """(512, 3): the coded bits, as -1 and 1, of each state of the nine-bit register."""
    registers = np.arange(2 * NUM_STATES)
    parity = [np.bitwise_count(registers & generator) % 2 for generator in GENERATORS]
    return 2.0 * np.stack(parity, axis=1) - 1
