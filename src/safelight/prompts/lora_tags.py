"""`<lora:name:0.8>` in prompts, as AUTOMATIC1111 reads it, and written again for its infotext.

| written | means |
|---|---|
| `<lora:name>` | weight 1 |
| `<lora:name:0.8>` | 0.8 for text encoder and UNet |
| `<lora:name:0.8:0.6>` | 0.8 for the text encoder, 0.6 for the UNet |
| `<lora:name:te=0.8:unet=0.6>` | the same |
| `<lora:name:1:lbw=1,0.5,0>` | weights by block, as `LoraWish.blocks` has them, in a list |
| `<lora:name:1:start=0.2:end=0.8>` | acts in that part of the steps |

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
NAMED = ("te", "unet", "lbw", "start", "end")


def take_loras(prompt: str) -> tuple[str, tuple[LoraRequest, ...]]:
    """The prompt without its tags, and what they ask for, in their order.

    Raises:
        InvalidRequest: a tag that says something else than a name and numbers.
    """
    requests = tuple(read_tag(tag[1]) for tag in TAG.finditer(prompt))
    # Spaces are no tokens, so what a tag leaves of them may go; a comma is one, and stays as there.
    return (re.sub(r"[ \t]{2,}", " ", TAG.sub("", prompt)).strip() if requests else prompt), requests


def read_tag(inside: str) -> LoraRequest:
    """`name:0.8:0.6` or `name:te=0.8`, without the brackets."""
    name, *parts = inside.split(":")
    positional = [part for part in parts if "=" not in part]
    given = dict(part.split("=", 1) for part in parts if "=" in part)
    for word in given:
        if word not in NAMED:
            raise InvalidRequest(f"<lora:{inside}>: no such setting as {word!r}{nearest(word, list(NAMED))}")
    if len(positional) > 2:
        raise InvalidRequest(f"<lora:{inside}>: at most two weights, text encoder and UNet, not {len(positional)}")
    text = given.get("te", positional[0] if positional else "1")
    unet = given.get("unet", positional[1] if len(positional) > 1 else text)
    values: dict[str, Any] = {"name": name.strip(), "weight": unet, "text_weight": None if text == unet else text}
    values |= {"blocks": given["lbw"].split(",") if "lbw" in given else None}
    values |= {word: given[word] for word in ("start", "end") if word in given}
    try:
        return LoraRequest(**{field: value for field, value in values.items() if value is not None})
    except ValidationError as error:
        raise InvalidRequest(f"<lora:{inside}>: {explain(error, list(LoraRequest.model_fields))}") from None


def write_tag(request: LoraRequest) -> str:
    """What `read_tag` reads back; names of blocks that make no list are left out of it."""
    text = request.weight if request.text_weight is None else request.text_weight
    parts = [request.name, number(text)]
    if text != request.weight:
        parts.append(number(request.weight))
    if request.blocks is not None and (listed := as_list(request.blocks)):
        parts.append(f"lbw={listed}")
    parts += [
        f"{word}={number(getattr(request, word))}"
        for word, usual in (("start", 0), ("end", 1))
        if getattr(request, word) != usual
    ]
    return f"<lora:{':'.join(parts)}>"


def as_list(blocks: Mapping[str, float]) -> str | None:
    names = next((names.split() for names in BLOCKS.values() if blocks.keys() <= set(names.split())), None)
    return None if names is None else ",".join(number(blocks.get(name, 1.0)) for name in names)


def number(value: float) -> str:
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def with_tags(prompt: str, loras: Sequence[LoraRequest]) -> str:
    """The prompt as somebody who uses AUTOMATIC1111 would have written it."""
    return " ".join(filter(None, [prompt, *map(write_tag, loras)]))
