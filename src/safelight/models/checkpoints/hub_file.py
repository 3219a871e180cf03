"""Anything of Stable Diffusion on the Hugging Face hub, with its commit and licence: a checkpoint, a network, one file.

org/name[@revision]                      the checkpoint, or the one network or file that the repository has
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
class HubFind:
    path: Path
    """A file, or a folder."""
    repository: str
    file: str
    """Of a single file, its path in the repository."""
    commit: str
    licence: str
    """As the model card says it; empty where it says nothing."""


def is_hub(text: str) -> bool:
    whole = HUB_ID.match(text) and not text.endswith(".safetensors")
    return bool(whole or HUB_FILE.match(text)) and not text.startswith(".")


def fetch_any(text: str) -> HubFind:
    """
    Raises:
        UnknownModel: no such repository, revision or file, or it is private and no token is set.
        InvalidRequest: there are several files to choose from.
        UnsafeFile: there is nothing but pickles.
        HubUnreachable: no network.
    """
    from huggingface_hub import HfApi, snapshot_download

    if named := HUB_FILE.match(text):
        repository, wanted, revision = named[1], named[2], named[3] or ""
    else:
        repository, _, revision = text.partition("@")
        wanted = ""
    with asking(text):
        info = HfApi().model_info(repository, revision=revision or None)
        commit, names = str(info.sha), [str(sibling.rfilename) for sibling in info.siblings or ()]
    if not wanted and "model_index.json" in names:
        path = fetch(f"{repository}@{commit}", half=False)
    else:
        files = choose(names, repository, wanted)
        with asking(text):
            folder = Path(snapshot_download(repository, revision=commit, allow_patterns=list(files)))
        wanted = files[0] if len(files) == 1 else ""
        path = folder / wanted
    return HubFind(path=path, repository=repository, file=wanted, commit=commit, licence=licence_in(info.card_data))


def choose(names: Sequence[str], repository: str, wanted: str) -> tuple[str, ...]:
    """The file that is wanted, the only one there is, or a network with its configuration."""
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
            f"{repository} has {listed or 'no safetensors file'}; say {repository}/FILE for one of them"
        )
    return (files[0],)


def licence_in(card: object) -> str:
    """Model cards call their own licences `other`, and name them beside."""
    said = getattr(card, "license", None)
    if said == "other":
        said = getattr(card, "license_name", None) or said
    return said if isinstance(said, str) else ""


@contextmanager
def asking(text: str) -> Generator[None, None, None]:
    from httpx2 import HTTPError  # what huggingface_hub speaks to the network with
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RevisionResolutionError

    try:
        yield
    except HFValidationError:
        raise UnknownModel(text, []) from None
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403, 404):
            raise UnknownModel(text, []) from error
        raise HubUnreachable(f"{text} cannot be had: {error}") from error
    except (HTTPError, OSError, RevisionResolutionError) as error:
        raise HubUnreachable(f"{text} cannot be had ({type(error).__name__}: {error})") from error
