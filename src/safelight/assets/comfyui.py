"""What a ComfyUI graph says of its picture, found by walking up from its sampler.

The graph is `{"3": {"class_type": "KSampler", "inputs": {"seed": 1, "positive": ["6", 0], ...}}, ...}`: an input is a
value or a link, [node, output]. Nodes are known by the names of their inputs, as there are thousands of classes.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, cast

from safelight.assets import sampler_names
from safelight.assets.infotext import Infotext

Inputs = Mapping[str, Any]
TEXTS = ("text", "text_g", "text_l", "clip_l", "t5xxl", "prompt", "value", "string")
OTHER = {"positive": "negative", "negative": "positive"}


def read_graph(graph: Mapping[str, Any]) -> tuple[Infotext, dict[str, Any]] | None:
    """Prompts and settings, or None where no sampler is found."""
    found = first_sampler(graph)
    if found is None:
        return None
    # A sampler in parts (SamplerCustomAdvanced) keeps the prompts in its guider.
    guider = next((node for node in upstream(graph, found) if "positive" in node or "conditioning" in node), found)
    wanted: dict[str, tuple[tuple[str, ...], type]] = {
        "seed": (("seed", "noise_seed"), int),
        "steps": (("steps",), int),
        "guidance": (("cfg", "guidance"), float),
        "strength": (("denoise",), float),
        "model": (("ckpt_name", "unet_name"), str),
    }
    settings = {name: value(graph, found, names, kind) for name, (names, kind) in wanted.items()}
    latent = {"latent": found.get("latent_image")}
    settings |= {side: value(graph, latent, (side,), int) for side in ("width", "height")}
    sampler = value(graph, found, ("sampler_name",), str)
    if sampler:
        schedule = value(graph, found, ("scheduler",), str) or "normal"
        settings["sampler"] = sampler_names.from_identifier(sampler, schedule)
    if settings["strength"] == 1:
        del settings["strength"]
    prompts = Infotext(
        prompt=text(graph, guider, "positive" if "positive" in guider else "conditioning"),
        negative_prompt=text(graph, guider, "negative"),
        pairs={},
    )
    return prompts, {name: setting for name, setting in settings.items() if setting is not None}


def first_sampler(graph: Mapping[str, Any]) -> Inputs | None:
    """The one that starts from an empty latent or a picture, not from another sampler."""
    samplers = [inputs for key in graph if (inputs := inputs_of(graph, key)) is not None and is_sampler(inputs)]
    for sampler in samplers[:20]:
        before = upstream(graph, {"latent": sampler["latent_image"]})
        if not any(is_sampler(node) for node in before):
            return sampler
    return None


def is_sampler(inputs: Inputs) -> bool:
    return "latent_image" in inputs and ("positive" in inputs or "guider" in inputs)


def text(graph: Mapping[str, Any], inputs: Inputs, role: str) -> str:
    """The words that reach this input; where a node has both roles (ControlNet), only ours is followed."""
    for node in upstream(graph, {role: inputs.get(role)}, skip=OTHER.get(role, "")):
        if words := next((node[name] for name in TEXTS if isinstance(node.get(name), str)), None):
            return words
    return ""


def value(graph: Mapping[str, Any], inputs: Inputs, names: tuple[str, ...], kind: type) -> Any:
    """The nearest value of one of these names, at the node itself or above."""
    for node in (inputs, *upstream(graph, inputs)):
        for name in names:
            found = node.get(name)
            if kind is float and type(found) is int:
                return float(found)
            if type(found) is kind:
                return found
    return None


def upstream(graph: Mapping[str, Any], inputs: Inputs, skip: str = "") -> Iterator[Inputs]:
    """The inputs of every node above, nearest first and each once, so a ring in the graph ends."""
    seen: set[str] = set()
    waiting = deque([inputs])
    while waiting:
        for name, link in waiting.popleft().items():
            key = source(link)
            if name == skip or key is None or key in seen:
                continue
            seen.add(key)
            # An emptied prompt (ConditioningZeroOut) has words above it that do not count.
            node = None if is_emptied(graph.get(key)) else inputs_of(graph, key)
            if node is not None:
                yield node
                waiting.append(node)


def source(link: object) -> str | None:
    match link:
        case [str(key), int()]:
            return key
        case _:
            return None


def inputs_of(graph: Mapping[str, Any], key: str) -> Inputs | None:
    node = graph.get(key)
    inputs = cast(Inputs, node).get("inputs") if isinstance(node, dict) else None
    return cast(Inputs, inputs) if isinstance(inputs, dict) else None


def is_emptied(node: object) -> bool:
    match node:
        case {"class_type": "ConditioningZeroOut"}:
            return True
        case _:
            return False
