"""Checkpoints from the Hugging Face hub: pinned to a commit, resumable, safetensors only.

`org/name` or `org/name@revision`. The files to download are chosen from the repository's file list, so that no
bandwidth is spent on pickles or a second copy in another format; huggingface_hub stores the files in its own cache.
"""

import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from safelight.errors import CorruptModel, SafelightError, UnknownModel, UnsafeFile
from safelight.models.checkpoints.digest import files_of
from safelight.models.checkpoints.families import describe

HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+(@[\w./-]+)?$")
CONFIGURATION = ("model_index.json", "safelight.json", "*/*.json", "*/*.txt")
COMPONENTS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "image_encoder")
COMMIT = re.compile(r"^[0-9a-f]{40}$")
HALF = re.compile(r"\.fp16[.-]")


class HubUnreachable(SafelightError):
    status, code = 503, "hub_unreachable"


def fetch(hub_id: str, *, half: bool) -> Path:
    """Return the checkpoint's folder, downloaded if necessary; `half` prefers fp16 files where both exist.

    Raises:
        UnknownModel: no such repository or revision, or it is private and no token is set.
        UnsafeFile: the repository has weights only in formats that can carry code.
        HubUnreachable: no network, and no copy from earlier.
    """
    from httpx2 import HTTPError  # the HTTP client that huggingface_hub uses
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RevisionResolutionError

    repository, _, revision = hub_id.partition("@")
    if COMMIT.match(revision) and (folder := cached_download(repository, revision)):
        return folder  # a commit never changes
    try:
        # The branch's current commit; huggingface_hub caches it, so that the same name works offline later.
        commit = HfApi().resolve_revision(repository, revision=revision or None)
        if folder := cached_download(repository, commit.resolved):
            return folder
        names = HfApi().list_repo_files(repository, revision=commit.resolved)
        files = wanted_files(names, repository, half=half)
        return Path(snapshot_download(repository, revision=commit, allow_patterns=files))
    except HFValidationError:
        raise UnknownModel(hub_id, ["mini"]) from None
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403, 404):
            raise UnknownModel(hub_id, ["mini"]) from error
        cause: Exception = error
    except (HTTPError, OSError, RevisionResolutionError) as error:
        cause = error
    if folder := cached_download(repository, revision):
        return folder
    raise HubUnreachable(
        f"{hub_id} cannot be downloaded and no complete copy is on this machine ({type(cause).__name__}: {cause})"
    ) from cause


def cached_download(repository: str, revision: str) -> Path | None:
    """Return the folder of an earlier download, if that was completed."""
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(repository, "model_index.json", revision=revision or None)
    if not isinstance(index, str):
        return None
    folder = Path(index).parent
    try:
        list(files_of(describe(folder)))
    except CorruptModel:
        return None
    return folder


def wanted_files(names: Sequence[str], repository: str, *, half: bool) -> list[str]:
    """Return the configuration files, and one set of safetensors for each component."""
    wanted = [name for name in names if any(fnmatch(name, pattern) for pattern in CONFIGURATION)]
    wanted = [name for name in wanted if ".safetensors.index." not in name]
    for component in COMPONENTS:
        weights = [name for name in names if name.startswith(f"{component}/") and is_weight_or_index(name)]
        halves = [name for name in weights if HALF.search(name)]
        plain = [name for name in weights if name not in halves and ".non_ema" not in name]
        chosen = (halves or plain) if half else (plain or halves)
        if not any(name.endswith(".safetensors") for name in chosen):
            if any(name.startswith(f"{component}/") and name.endswith((".bin", ".ckpt")) for name in names):
                raise UnsafeFile(
                    f"{repository} has {component} only as a pickle, which can run code when opened; "
                    "look for a revision or a copy in safetensors"
                )
            continue
        wanted += chosen
    return wanted


def is_weight_or_index(name: str) -> bool:
    leaf = name.rpartition("/")[2]
    stem_known = leaf.startswith(("diffusion_pytorch_model", "model"))
    return stem_known and (leaf.endswith(".safetensors") or ".safetensors.index" in leaf)
