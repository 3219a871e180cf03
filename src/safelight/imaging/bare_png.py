"""A PNG's own bytes with nothing in them but the picture.

What a stranger's file may carry beside its pixels is left behind: EXIF with the place it was taken, prompts and other
text, colour profiles and gamma (colours are taken as sRGB), chunks of anybody's own, and whatever follows the end,
where a file hides that is also a ZIP or a script. The pixels stay as they were encoded, bit for bit.

Only PNG is kept like this. What a JPEG or a lossy WebP looks like depends on who decodes it, so that its digest would
not name one picture; and their metadata cannot be told from their pixels without reading the whole stream.
"""

import struct

SIGNATURE = b"\x89PNG\r\n\x1a\n"
KEPT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
MAX_BYTES_PER_PIXEL = 9
"""Four channels of 16 bits, and the filters' and zlib's own: a stream that is longer holds something else as well."""
SLACK_BYTES = 4096


def bare_png(data: bytes) -> bytes | None:
    """None where that is no whole picture any more: an animation, chunks that a reader must know and we do not, or more
    bytes than its pixels can fill. `data` has been decoded, so it is a PNG, and upright.
    """
    assert data.startswith(SIGNATURE)
    first, width, height = struct.unpack_from(">4sII", data, 12)
    parts, at = [SIGNATURE], len(SIGNATURE)
    while first == b"IHDR" and at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data) or kind == b"acTL" or (kind not in KEPT and is_critical(kind)):
            return None
        if kind in KEPT:
            parts.append(data[at:end])
        if kind == b"IEND":
            bare = b"".join(parts)
            return bare if len(bare) <= MAX_BYTES_PER_PIXEL * width * height + SLACK_BYTES else None
        at = end
    return None


def is_critical(kind: bytes) -> bool:
    """A reader that does not know such a chunk cannot show the picture: its first letter is a capital."""
    return not kind[0] & 0x20
