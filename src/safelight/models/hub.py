"""Checkpoints from the Hugging Face hub: pinned to a commit, resumable, safetensors only.

`org/name` or `org/name@revision`. What is downloaded is decided from the repository's file list, so that neither
pickles nor a second copy in another format costs bandwidth; huggingface_hub keeps the files in its own cache.
"""

import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from safelight.errors import SafelightError, UnknownModel, UnsafeFile

HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+(@[\w./-]+)?$")
CONFIGURATION = ("model_index.json", "safelight.json", "*/*.json", "*/*.txt")
COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2")


class HubUnreachable(SafelightError):
    status, code = 503, "hub_unreachable"


def fetch(hub_id: str, *, half: bool) -> Path:
    """The checkpoint's folder, downloaded if it is not there yet; `half` prefers fp16 files where both exist.

    Raises:
        UnknownModel: no such repository or revision, or it is private and no token is set.
        UnsafeFile: the repository has weights only in formats that can carry code.
        HubUnreachable: no network, and no copy from earlier.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    repository, _, revision = hub_id.partition("@")
    try:
        info = HfApi().model_info(repository, revision=revision or None)
        files = wanted_files([entry.rfilename for entry in info.siblings or []], repository, half=half)
        return Path(snapshot_download(repository, revision=info.sha, allow_patterns=files))
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403, 404):
            raise UnknownModel(hub_id, ["mini"]) from error
        return downloaded_earlier(hub_id, error)
    except (OSError, OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        return downloaded_earlier(hub_id, error)


def downloaded_earlier(hub_id: str, cause: Exception) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, _, revision = hub_id.partition("@")
    try:
        folder = Path(snapshot_download(repository, revision=revision or None, local_files_only=True))
    except (LocalEntryNotFoundError, OSError):
        folder = None
    if folder is None or not (folder / "model_index.json").is_file():
        raise HubUnreachable(
            f"{hub_id} cannot be downloaded and no copy is on this machine ({type(cause).__name__}: {cause})"
        ) from cause
    return folder


def wanted_files(names: Sequence[str], repository: str, *, half: bool) -> list[str]:
    """Configuration, and one set of safetensors a component."""
    wanted = [name for name in names if any(fnmatch(name, pattern) for pattern in CONFIGURATION)]
    wanted = [name for name in wanted if not name.endswith(".index.json") and ".index." not in name]
    for component in COMPONENTS:
        weights = [name for name in names if name.startswith(f"{component}/") and is_weight_or_index(name)]
        plain = [name for name in weights if ".fp16." not in name and ".non_ema." not in name]
        halves = [name for name in weights if ".fp16." in name]
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
