"""Whether the files of versions are still what they were when they were added: every byte is read again."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from safelight.errors import InvalidRequest
from safelight.models.registry.registry import Registry
from safelight.models.registry.storage import faults_of
from safelight.models.registry.version import Reference, Version


@dataclass(frozen=True, slots=True)
class VerifyResult:
    version: Version
    faults: Mapping[str, str]
    """What is wrong with which file: `missing`, `changed`, or why it cannot be read."""


def verify(registry: Registry, references: Sequence[str] = ()) -> Iterator[VerifyResult]:
    """One at a time, since each takes as long as reading it; without references, all that are here.

    A name without a number stands for all its versions.
    """
    seen: dict[str, Mapping[str, str]] = {}
    for version in chosen(registry, references):
        place = str(version.folder)
        if place not in seen:
            seen[place] = faults_of(version.folder, version.files)
        yield VerifyResult(version, seen[place])


def chosen(registry: Registry, references: Sequence[str]) -> list[Version]:
    if not references:
        return registry.versions()
    found: list[Version] = []
    for text in references:
        reference = Reference.parse(text)
        several = [] if reference.label else registry.versions(reference.name)
        found += several or [registry.resolve(text)]
    if gone := [version.reference for version in found if version.removed is not None]:
        raise InvalidRequest(f"{', '.join(gone)}: removed, so there is nothing to verify")
    return found


def leftovers(registry: Registry) -> list[str]:
    """Folders of whole versions that were never registered: their process was killed between two steps."""
    needed = {version.digest for version in registry.versions() if not version.in_place}
    found = registry.storage.folder.glob("[0-9a-f]" * 64)
    return sorted(path.name for path in found if path.name not in needed)


def clean(registry: Registry) -> list[str]:
    """Remove them; a version that another process is adding at this moment is not among them."""
    with registry.storage.locked():
        gone = leftovers(registry)
        for digest in gone:
            registry.storage.drop(digest)
    return gone
