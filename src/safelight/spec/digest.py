"""The name of a spec for good."""

import hashlib
import json

from pydantic import BaseModel


def digest_of(value: BaseModel) -> str:
    """sha256 of the canonical JSON: sorted keys, no spaces, UTF-8.

    A field at its default is left out, so that a field added later, whose default is what was done before, leaves old
    digests valid. A default in a spec therefore never changes.
    """
    values = value.model_dump(mode="json", exclude_defaults=True) | value.model_dump(include={"task"})
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
