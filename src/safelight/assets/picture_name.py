"""File names made of prompts: short, readable, and harmless wherever they are written."""

import unicodedata

MAX_BYTES = 60
"""Of the words; file systems allow 255 for the whole name."""


def picture_name(prompt: str, seed: int) -> str:
    """`a-red-apple-1234`: letters, digits and single hyphens of any script, so no path, option or reserved name."""
    folded = unicodedata.normalize("NFKC", prompt[:1000]).lower()
    words = "".join(letter if unicodedata.category(letter)[0] in "LMN" else " " for letter in folded).split()
    name = ""
    for word in words:
        longer = f"{name}-{word}" if name else word.encode()[:MAX_BYTES].decode(errors="ignore")
        if len(longer.encode()) > MAX_BYTES:
            break
        name = longer
    return f"{name or 'picture'}-{seed}"
