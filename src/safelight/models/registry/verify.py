"""Verify that the files of versions are unchanged since they were added, by reading every byte again."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from safelight.errors import InvalidRequest
from safelight.models.registry.registry import Registry
from safelight.models.registry.storage import problems_of
from safelight.models.registry.version import Reference, Version


@dataclass(frozen=True, slots=True)
class VerifyResult:
    version: Version
    problems: Mapping[str, str]
    """By file: `missing`, `changed`, or why it cannot be read."""


def verify(registry: Registry, references: Sequence[str] = ()) -> Iterator[VerifyResult]:
    """Yield one result at a time, since each takes as long as reading the files; without references, all versions.

    A name without a number means all its versions.
    """
    verified: dict[str, Mapping[str, str]] = {}
    for version in chosen(registry, references):
        place = str(version.folder)
        if place not in verified:
            verified[place] = problems_of(version.folder, version.files)
        yield VerifyResult(version, verified[place])


def chosen(registry: Registry, references: Sequence[str]) -> list[Version]:
    if not references:
        return registry.versions()
    found: list[Version] = []
    for text in references:
        reference = Reference.parse(text)
        versions = [] if reference.label else registry.versions(reference.name)
        found += versions or [registry.resolve(text)]
    if gone := [version.reference for version in found if version.removed is not None]:
        raise InvalidRequest(f"{', '.join(gone)}: removed, so there is nothing to verify")
    return found


def leftovers(registry: Registry) -> list[str]:
    """Return complete folders that were never registered, because their process was killed before writing the row."""
    needed = {version.digest for version in registry.versions() if not version.in_place}
    found = registry.storage.folder.glob("[0-9a-f]" * 64)
    return sorted(path.name for path in found if path.name not in needed)


def clean(registry: Registry) -> list[str]:
    """Remove these folders; versions that another process is adding at the moment are not among them."""
    with registry.storage.locked():
        gone = leftovers(registry)
        for digest in gone:
            registry.storage.drop(digest)
    return gone
