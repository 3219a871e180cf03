"""Stable Diffusion models on the Hugging Face hub, with commit and licence: a checkpoint, a network, one file.

org/name[@revision]                      the checkpoint, or the only network or file in the repository
org/name/some.safetensors[@revision]     that file
"""

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safelight.errors import InvalidRequest, UnknownModel, UnsafeFile
from safelight.models.checkpoints.hub import HUB_ID, HubUnreachable, fetch
from safelight.models.weights.safetensors_file import NETWORK, PICKLE_SUFFIXES, WHY_NOT

HUB_FILE = re.compile(r"^([\w.-]+/[\w.-]+)/((?!\.)[\w. -]+(?:/(?!\.)[\w. -]+)*\.safetensors)(?:@([\w./-]+))?$")
MAX_LISTED = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFiles:
    path: Path
    """A file, or a folder."""
    repository: str
    file: str
    """A single file's path in the repository; else empty."""
    commit: str
    licence: str
    """From the model card; empty if it names none."""


def is_hub_id(text: str) -> bool:
    whole = HUB_ID.match(text) and not text.endswith(".safetensors")
    return bool(whole or HUB_FILE.match(text)) and not text.startswith(".")


def fetch_any(text: str) -> HubFiles:
    """
    Raises:
        UnknownModel: no such repository, revision or file, or it is private and no token is set.
        InvalidRequest: the repository has several files, and none is named.
        UnsafeFile: the repository has only pickles.
        HubUnreachable: no network.
    """
    from huggingface_hub import HfApi, snapshot_download

    if named := HUB_FILE.match(text):
        repository, wanted, revision = named[1], named[2], named[3] or ""
    else:
        repository, _, revision = text.partition("@")
        wanted = ""
    with hub_errors(text):
        info = HfApi().model_info(repository, revision=revision or None)
        commit, names = str(info.sha), [str(sibling.rfilename) for sibling in info.siblings or ()]
    if not wanted and "model_index.json" in names:
        path = fetch(f"{repository}@{commit}", half=False)
    else:
        files = choose(names, repository, wanted)
        with hub_errors(text):
            folder = Path(snapshot_download(repository, revision=commit, allow_patterns=list(files)))
        wanted = files[0] if len(files) == 1 else ""
        path = folder / wanted
    return HubFiles(path=path, repository=repository, file=wanted, commit=commit, licence=licence_in(info.card_data))


def choose(names: Sequence[str], repository: str, wanted: str) -> tuple[str, ...]:
    """Return the requested file, or the only one, or a network with its configuration."""
    files = sorted(name for name in names if name.endswith(".safetensors"))
    if wanted:
        if wanted not in files:
            raise UnknownModel(wanted, files, kind=f"file in {repository}")
        return (wanted,)
    network = f"{NETWORK}.safetensors"
    if network in files and "config.json" in names:
        return (network, "config.json")
    if not files and any(name.endswith(PICKLE_SUFFIXES) for name in names):
        raise UnsafeFile(f"{repository} has only pickles, {WHY_NOT}; look for a revision or a copy in safetensors")
    if len(files) != 1:
        listed = ", ".join(files[:MAX_LISTED]) + (", ..." if len(files) > MAX_LISTED else "")
        raise InvalidRequest(
            f"{repository} has {listed or 'no safetensors file'}; use {repository}/FILE for one of them"
        )
    return (files[0],)


def licence_in(card: object) -> str:
    """Return the card's licence; if that is `other`, its `license_name`."""
    licence = getattr(card, "license", None)
    if licence == "other":
        licence = getattr(card, "license_name", None) or licence
    return licence if isinstance(licence, str) else ""


@contextmanager
def hub_errors(text: str) -> Generator[None, None, None]:
    from httpx2 import HTTPError  # the HTTP client that huggingface_hub uses
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RevisionResolutionError

    try:
        yield
    except HFValidationError:
        raise UnknownModel(text, []) from None
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403, 404):
            raise UnknownModel(text, []) from error
        raise HubUnreachable(f"{text} cannot be downloaded: {error}") from error
    except (HTTPError, OSError, RevisionResolutionError) as error:
        raise HubUnreachable(f"{text} cannot be downloaded ({type(error).__name__}: {error})") from error
