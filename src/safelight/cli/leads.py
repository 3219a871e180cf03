"""`--control` and `--ip` of `safelight generate`: pictures that lead, in one line each."""

import json
import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from safelight.cli.kept import kept
from safelight.errors import InvalidRequest
from safelight.spec.effects import ControlMode

if TYPE_CHECKING:
    from safelight.settings import Settings

NUMBER = r"-?\d*\.?\d+"
SPAN = re.compile(rf"({NUMBER})-({NUMBER})")
CONTROL_FORM = "FILE:MODEL[:PREPROCESSOR][:as-KIND][:WEIGHT][:FROM-TO]"
FACE_FILES = (".npy", ".json")
PICTURE_FORM = "FILE[:ADAPTER][:WEIGHT][:FROM-TO]"


def control_requests(texts: Sequence[str], settings: "Settings") -> list[dict[str, Any]]:
    """Fields of `spec.ControlRequest`; the pictures are stored."""
    requests = [control_request(text) for text in texts]
    for request in requests:
        require_file_first(request)
    return [{**request, "image": kept(Path(request["image"]), settings)} for request in requests]


def picture_requests(texts: Sequence[str], settings: "Settings") -> list[dict[str, Any]]:
    """Fields of `spec.PicturePromptRequest`; without a name, the only adapter that is installed."""
    requests = [picture_request(text) for text in texts]
    for request in requests:
        if "model" not in request:
            request["model"] = only_adapter(settings)
    return [with_content(request, settings) for request in requests]


def with_content(request: dict[str, Any], settings: "Settings") -> dict[str, Any]:
    """The request with its picture stored, or with the face embeddings of its file."""
    file = Path(request.pop("image"))
    if file.suffix.lower() in FACE_FILES:
        return {**request, "faces": faces_in(file)}
    return {**request, "image": kept(file, settings)}


def faces_in(file: Path) -> list[list[float]]:
    """The embeddings in a file of NumPy or JSON: one, or a list of them; the spec checks how long they are.

    Raises:
        InvalidRequest: it cannot be read, or holds something else.
    """
    import numpy as np

    try:
        data = file.read_bytes()
        is_json = file.suffix.lower() == ".json"
        read = np.array(json.loads(data)) if is_json else np.lib.format.read_array(BytesIO(data))
        if read.dtype.kind not in "fiu" or read.ndim not in (1, 2):
            raise ValueError(f"it holds an array of {read.dtype} of shape {read.shape}")
        return np.atleast_2d(read).astype(float).tolist()
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{file} is read as face embeddings, each a list of 512 numbers: {error}") from None


def control_request(text: str) -> dict[str, Any]:
    """`sketch.png:canny-sd15:scribble:0.8:0-0.6`: the parts after the model are optional, in any order."""
    from safelight.models.vision.preprocessors import PREPROCESSORS

    parts, request = text.split(":"), dict[str, Any]()
    # From the end, and never the first two: a net may be called as a preprocessor is.
    while len(parts) > 2 and (meant := number_or_span(parts[-1]) or named(parts[-1], list(PREPROCESSORS))):
        if meant.keys() & request.keys():
            break
        request |= meant
        parts.pop()
    if len(parts) < 2 or not all(parts):
        raise InvalidRequest(f"--control is {CONTROL_FORM}, such as sketch.png:canny-sd15:canny:0.8, not {text!r}")
    return {"image": ":".join(parts[:-1]), "model": parts[-1], **request}


def require_file_first(request: dict[str, Any]) -> None:
    """Raises for `apple.png:net:cany`: it parses as a file `apple.png:net`, but the preprocessor is misspelt."""
    from safelight.models.vision.preprocessors import require_preprocessor

    file = request["image"].rpartition(":")[0]
    if file and not Path(request["image"]).exists() and Path(file).is_file():
        require_preprocessor(request["model"])


def picture_request(text: str) -> dict[str, Any]:
    """`cat.png`, or `cat.png:ip-adapter_sd15:0.6`."""
    parts, request = text.split(":"), dict[str, Any]()
    while len(parts) > 1 and (meant := number_or_span(parts[-1])) and not meant.keys() & request.keys():
        request |= meant
        parts.pop()
    if not all(parts):
        raise InvalidRequest(f"--ip is {PICTURE_FORM}, such as cat.png:ip-adapter_sd15:0.6, not {text!r}")
    # A last part with a slash is the rest of a path that has a colon in it.
    if len(parts) > 1 and not ("/" in parts[-1] and not parts[-1].endswith(".safetensors")):
        return {"image": ":".join(parts[:-1]), "model": parts[-1], **request}
    return {"image": ":".join(parts), **request}


def number_or_span(text: str) -> dict[str, Any] | None:
    if re.fullmatch(NUMBER, text):
        return {"weight": text}
    span = SPAN.fullmatch(text)
    return {"start": span[1], "end": span[2]} if span else None


def named(text: str, preprocessors: Sequence[str]) -> dict[str, Any] | None:
    if text in get_args(ControlMode):
        return {"mode": text}
    if text.startswith("as-"):
        return {"hint_kind": text.removeprefix("as-")}
    return {"preprocessor": text} if text in preprocessors or text.startswith("depth/") else None


def only_adapter(settings: "Settings") -> str:
    from safelight.models.checkpoints.control_folder import ControlFolder
    from safelight.models.registry.registered_models import open_catalogue

    known = list(ControlFolder(open_catalogue(settings)).paths("ip-adapter"))
    if len(known) != 1:
        what = (
            f"there are several: {', '.join(known)}; name one"
            if known
            else "there is none in SAFELIGHT_HOME/ip-adapters"
        )
        raise InvalidRequest(f"--ip needs an IP-Adapter, and {what}, as in --ip {PICTURE_FORM}")
    return known[0]
