"""File names from prompts: short, readable, and safe on every file system."""

import unicodedata

MAX_BYTES = 60
"""Maximum length of the prompt's part; file systems allow 255 for the whole name."""


def picture_name(prompt: str, seed: int) -> str:
    """Return e.g. `a-red-apple-1234`: letters and digits of any script and single hyphens, never a path or option."""
    folded = unicodedata.normalize("NFKC", prompt[:1000]).lower()
    words = "".join(letter if unicodedata.category(letter)[0] in "LMN" else " " for letter in folded).split()
    name = ""
    for word in words:
        longer = f"{name}-{word}" if name else word.encode()[:MAX_BYTES].decode(errors="ignore")
        if len(longer.encode()) > MAX_BYTES:
            break
        name = longer
    return f"{name or 'picture'}-{seed}"
