"""Strip a PNG file to its image data, without encoding it again.

Everything but pixels is removed from untrusted files: EXIF with its location, prompts and other text, colour profiles
and gamma (colours are taken as sRGB), private chunks, and data after the end, where a ZIP or a script may hide. The
encoded pixels stay the same, bit for bit.

Only PNG is supported. The pixels of a JPEG or a lossy WebP depend on the decoder, so their digest would not identify
one image; and their metadata cannot be separated from their pixels without parsing the whole stream.
"""

import struct

SIGNATURE = b"\x89PNG\r\n\x1a\n"
KEPT_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
MAX_BYTES_PER_PIXEL = 9
"""Four channels of 16 bits, plus the overhead of filters and zlib: a longer stream holds other data as well."""
SLACK_BYTES = 4096


def bare_png(data: bytes) -> bytes | None:
    """Return the stripped file. None if that is not possible: an animation, unknown critical chunks, or more bytes than
    the pixels can need. `data` must have been decoded before, so that it is a valid PNG, and be upright.
    """
    assert data.startswith(SIGNATURE)
    first, width, height = struct.unpack_from(">4sII", data, 12)
    parts, offset = [SIGNATURE], len(SIGNATURE)
    while first == b"IHDR" and offset + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        end = offset + 12 + length
        if end > len(data) or kind == b"acTL" or (kind not in KEPT_CHUNKS and is_critical(kind)):
            return None
        if kind in KEPT_CHUNKS:
            parts.append(data[offset:end])
        if kind == b"IEND":
            bare = b"".join(parts)
            return bare if len(bare) <= MAX_BYTES_PER_PIXEL * width * height + SLACK_BYTES else None
        offset = end
    return None


def is_critical(kind: bytes) -> bool:
    """Return whether the chunk is critical (its first letter is a capital): readers must know it to show the image."""
    return not kind[0] & 0x20
