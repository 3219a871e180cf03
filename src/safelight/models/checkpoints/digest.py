"""A checkpoint's permanent identifier: the sha256 of every file that is read."""

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from safelight.errors import CorruptModel
from safelight.models.checkpoints.families import IMAGE_ENCODER, PREPROCESSOR, Description, own_settings, tokenizer_of
from safelight.models.weights.safetensors_file import NETWORK, TEXT_ENCODER, weight_files
from safelight.regular_file import open_regular, read_regular, real_path


def files_of(description: Description) -> Iterator[Path]:
    """Yield every file that `load_model` and `describe` read; a folder may hold other variants and unrelated files."""
    if description.is_file:
        yield from (path for path in (description.path, own_settings(description.path)) if path.is_file())
        return
    folder, encoders = description.path, description.prompt_encoders
    settings = [folder / "model_index.json", folder / "safelight.json", folder / "scheduler" / "scheduler_config.json"]
    yield from (path for path in settings if path.is_file())
    for part in map(tokenizer_of, encoders):
        yield from (path for path in (folder / part).glob("*") if path.suffix in (".json", ".txt"))
    if description.family.image_conditioned:
        encoders = (IMAGE_ENCODER,)
        yield from (path for path in [folder / PREPROCESSOR] if path.is_file())
    for part in (description.family.network, "vae", *encoders):
        yield folder / part / "config.json"
        yield from weight_files(folder / part, TEXT_ENCODER if part in encoders else NETWORK)


def digest_model(description: Description, *, cache: Path | None = None) -> str:
    """Return sha256 over the sha256 of every file the loader reads, by relative path; a single file's own sha256.

    Hashing gigabytes takes seconds, so each file's sum is cached under its path, size and modification time.

    Raises:
        UnsafeFile, CorruptModel: as `load_model`.
    """
    files = sorted(files_of(description))
    root = description.path.parent if description.is_file else description.path
    sums = dict(zip((path.relative_to(root).as_posix() for path in files), sums_of(files, cache=cache), strict=True))
    return digest_of_sums(sums, entry=description.path.name if description.is_file else "")


def digest_files(files: Mapping[str, Path], *, cache: Path | None = None) -> str:
    """Return sha256 over the sha256 of each file by name; for a single file, its own sha256."""
    sums = dict(zip(files, sums_of(list(files.values()), cache=cache), strict=True))
    return digest_of_sums(sums, entry=next(iter(sums)) if len(sums) == 1 else "")


def known_digest(description: Description, *, cache: Path) -> str | None:
    """Return the digest if every file's sum is cached, else None; nothing is hashed."""
    known = read_sums(cache)
    if any(key_of(path) not in known for path in files_of(description)):
        return None
    return digest_model(description, cache=cache)


def digest_of_sums(sums: Mapping[str, str], *, entry: str) -> str:
    """Compute a digest from each file's sum by path; `entry` is the model's file, empty if the folder is the model."""
    if [*sums] == [entry]:
        return sums[entry]
    total = hashlib.sha256()
    for name, digest in sorted(sums.items(), key=lambda file: Path(file[0])):
        # A single file keeps its digest when it is renamed.
        total.update(f"{name.removeprefix(Path(entry).stem)} {digest}\n".encode())
    return total.hexdigest()


def sums_of(files: Sequence[Path], *, cache: Path | None = None) -> list[str]:
    """Return the sha256 of each file; cached sums are valid while size and modification time are unchanged."""
    known = read_sums(cache)
    sums: dict[str, str] = {}
    found: list[str] = []
    for path in files:
        try:
            key = key_of(path)
            sums[key] = known.get(key) or file_sum(path)
        except OSError as error:
            raise CorruptModel(f"{path} cannot be read: {error.strerror}") from None
        found.append(sums[key])
    if cache is not None and not sums.keys() <= known.keys():
        write_sums(cache, known | sums)
    return found


def cache_sums(sums: Mapping[Path, str], *, cache: Path) -> None:
    """Add sums that were computed while the files were written."""
    known = read_sums(cache)
    with suppress(OSError):
        write_sums(cache, known | {key_of(path): digest for path, digest in sums.items()})


def key_of(path: Path) -> str:
    status = path.stat()
    return f"{real_path(path)}|{status.st_size}|{status.st_mtime_ns}"


def file_sum(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_sums(cache: Path | None) -> dict[str, str]:
    try:
        sums = json.loads(read_regular(cache)) if cache else {}
    except (OSError, ValueError):
        return {}
    return sums if isinstance(sums, dict) else {}


def write_sums(cache: Path, sums: dict[str, str]) -> None:
    """Write the cache atomically; if that fails, the next start hashes again."""
    part = cache.with_suffix(f".{os.getpid()}-{threading.get_ident()}.part")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(sums))
        part.replace(cache)
    except OSError:
        with suppress(OSError):
            part.unlink()
