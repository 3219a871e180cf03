import numpy as np
import pytest

from safelight.trust.watermark.payload import NUM_CODED, crc16, decode, encode

ASSET = bytes.fromhex("0123456789abcdef")


def test_the_checksum_has_the_published_check_value() -> None:
    # The catalogue of CRC algorithms lists 0x29B1 for CRC-16/IBM-3740 over these nine digits.
    assert crc16(b"123456789").hex() == "29b1"


def test_a_single_one_is_coded_as_the_generators() -> None:
    """The code is linear, and the checksum comes 64 steps later."""
    first, zeros = (encode(start + bytes(7)) > 0 for start in (b"\x80", b"\x00"))
    steps = (first ^ zeros).reshape(-1, 3)[:9]
    generators = [sum(int(bit) << age for age, bit in enumerate(column)) for column in steps.T]
    assert [oct(generator) for generator in generators] == ["0o557", "0o663", "0o711"]


def test_coded_bits_are_decoded() -> None:
    coded = encode(ASSET)
    assert coded.shape == (NUM_CODED,)
    assert set(coded) == {-1, 1}
    assert decode(coded) == (ASSET, True)


@pytest.mark.parametrize("seed", range(5))
def test_soft_decoding_survives_an_eighth_of_the_bits_wrong(seed: int) -> None:
    """Gaussian noise of deviation 0.9 turns 13 % of the signs."""
    soft = encode(ASSET) + np.random.default_rng(seed).normal(0, 0.9, NUM_CODED).astype(np.float32)
    assert np.mean(np.sign(soft) != encode(ASSET)) > 0.08
    assert decode(soft) == (ASSET, True)


def test_eight_flipped_bits_are_corrected_wherever_they_are() -> None:
    """The free distance is 18: any eight errors leave the sent word the nearest."""
    for start in range(0, NUM_CODED - 8, 16):
        soft = encode(ASSET)
        soft[start : start + 8] *= -1
        assert decode(soft) == (ASSET, True)


def test_noise_has_no_right_checksum() -> None:
    noise = np.random.default_rng(0).normal(size=(20, NUM_CODED)).astype(np.float32)
    assert [decode(row)[1] for row in noise] == [False] * 20
