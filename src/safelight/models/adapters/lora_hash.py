"""The hash that AUTOMATIC1111 and Civitai know a LoRA by: twelve digits, of the weights and not of the file.

Trainers write it into the header (`sshs_model_hash`); else it is the sha256 of all that comes after the header, so that
a title added to the metadata does not change it. Specs pin the whole file's sha256, which is another number.
"""

import hashlib
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from safelight.errors import SafelightError
from safelight.models.checkpoints.catalogue import Catalogue
from safelight.models.checkpoints.digest import key_of, read_sums, write_sums
from safelight.models.weights.safetensors_file import read_header
from safelight.regular_file import open_regular
from safelight.spec.effects import PinnedLora

LENGTH = 12
SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def lora_hashes(loras: Sequence[PinnedLora], catalogue: Catalogue) -> dict[str, str]:
    """The hash of each file by our digest of it, without those that are gone."""
    found: dict[str, str] = {}
    for pinned in loras:
        with suppress(SafelightError, OSError):
            path = catalogue.pinned(pinned.name, pinned.digest, "lora")
            found[pinned.digest] = lora_hash(path, cache=catalogue.sums)
    return found


def lora_hash(path: Path, *, cache: Path) -> str:
    """
    Raises:
        UnsafeFile, CorruptModel: no safetensors file.
    """
    header = read_header(path)
    said = header.metadata.get("sshs_model_hash", "")
    if SHA256.fullmatch(said):
        return said[:LENGTH]
    known, key = read_sums(cache), f"{key_of(path)}|weights"
    if key not in known:
        first = min((entry.begin for entry in header.tensors.values()), default=path.stat().st_size)
        with open_regular(path) as file:
            file.seek(first)
            known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        write_sums(cache, known)
    return known[key][:LENGTH]
