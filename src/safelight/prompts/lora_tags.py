"""`<lora:name:0.8>` in prompts: parsed as AUTOMATIC1111 parses it, and written for its infotext.

| written | means |
|---|---|
| `<lora:name>` | weight 1 |
| `<lora:name:0.8>` | 0.8 for text encoder and UNet |
| `<lora:name:0.8:0.6>` | 0.8 for the text encoder, 0.6 for the UNet |
| `<lora:name:te=0.8:unet=0.6>` | the same |
| `<lora:name:1:lbw=1,0.5,0>` | weights by block, as a list of the values in `LoraRequest.blocks` |
| `<lora:name:1:start=0.2:end=0.8>` | active in that part of the steps |

`<lyco:...>` is the same. Nothing here imports torch.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from safelight.errors import InvalidRequest, nearest
from safelight.spec import LoraRequest
from safelight.spec.effects import BLOCKS
from safelight.validation import explain

TAG = re.compile(r"<(?:lora|lyco):([^<>]*)>", re.IGNORECASE)
SETTINGS = ("te", "unet", "lbw", "start", "end")


def extract_loras(prompt: str) -> tuple[str, tuple[LoraRequest, ...]]:
    """Return the prompt without its tags, and the requested LoRAs in the order of the tags.

    Raises:
        InvalidRequest: a tag with something other than a name and valid settings.
    """
    requests = tuple(read_tag(tag[1]) for tag in TAG.finditer(prompt))
    # Spaces are no tokens, so doubled ones may be removed; a comma is a token and stays, as in AUTOMATIC1111.
    return (re.sub(r"[ \t]{2,}", " ", TAG.sub("", prompt)).strip() if requests else prompt), requests


def read_tag(tag: str) -> LoraRequest:
    """Parse `name:0.8:0.6` or `name:te=0.8`, without the angle brackets."""
    name, *parts = tag.split(":")
    positional = [part for part in parts if "=" not in part]
    named = dict(part.split("=", 1) for part in parts if "=" in part)
    for setting in named:
        if setting not in SETTINGS:
            raise InvalidRequest(f"<lora:{tag}>: no such setting as {setting!r}{nearest(setting, list(SETTINGS))}")
    if len(positional) > 2:
        raise InvalidRequest(f"<lora:{tag}>: at most two weights, text encoder and UNet, not {len(positional)}")
    text_weight = named.get("te", positional[0] if positional else "1")
    unet = named.get("unet", positional[1] if len(positional) > 1 else text_weight)
    values: dict[str, Any] = {
        "name": name.strip(),
        "weight": unet,
        "text_weight": None if text_weight == unet else text_weight,
    }
    values |= {"blocks": named["lbw"].split(",") if "lbw" in named else None}
    values |= {setting: named[setting] for setting in ("start", "end") if setting in named}
    try:
        return LoraRequest(**{field: value for field, value in values.items() if value is not None})
    except ValidationError as error:
        raise InvalidRequest(f"<lora:{tag}>: {explain(error, list(LoraRequest.model_fields))}") from None


def write_tag(request: LoraRequest) -> str:
    """Write a tag that `read_tag` can parse; block weights that cannot be written as a list are left out."""
    text_weight = request.weight if request.text_weight is None else request.text_weight
    parts = [request.name, format_number(text_weight)]
    if text_weight != request.weight:
        parts.append(format_number(request.weight))
    if request.blocks is not None and (block_list := to_block_list(request.blocks)):
        parts.append(f"lbw={block_list}")
    parts += [
        f"{setting}={format_number(getattr(request, setting))}"
        for setting, default in (("start", 0), ("end", 1))
        if getattr(request, setting) != default
    ]
    return f"<lora:{':'.join(parts)}>"


def to_block_list(blocks: Mapping[str, float]) -> str | None:
    names = next((names.split() for names in BLOCKS.values() if blocks.keys() <= set(names.split())), None)
    return None if names is None else ",".join(format_number(blocks.get(name, 1.0)) for name in names)


def format_number(value: float) -> str:
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def with_tags(prompt: str, loras: Sequence[LoraRequest]) -> str:
    """Return the prompt with a tag for each LoRA, as in AUTOMATIC1111."""
    return " ".join(filter(None, [prompt, *map(write_tag, loras)]))
