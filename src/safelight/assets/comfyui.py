"""Read prompts and settings from a ComfyUI graph, by walking upstream from its sampler.

The graph is `{"3": {"class_type": "KSampler", "inputs": {"seed": 1, "positive": ["6", 0], ...}}, ...}`: an input is a
value or a link, [node, output]. Nodes are recognised by the names of their inputs, as there are thousands of classes.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, cast

from safelight.assets import sampler_names
from safelight.assets.infotext import Infotext

Inputs = Mapping[str, Any]
TEXT_INPUTS = ("text", "text_g", "text_l", "clip_l", "t5xxl", "prompt", "value", "string")
OPPOSITE_ROLE = {"positive": "negative", "negative": "positive"}


def read_graph(graph: Mapping[str, Any]) -> tuple[Infotext, dict[str, Any]] | None:
    """Return prompts and settings, or None if no sampler is found."""
    found = first_sampler(graph)
    if found is None:
        return None
    # With SamplerCustomAdvanced, the prompts are inputs of its guider.
    guider = next((node for node in upstream(graph, found) if "positive" in node or "conditioning" in node), found)
    wanted: dict[str, tuple[tuple[str, ...], type]] = {
        "seed": (("seed", "noise_seed"), int),
        "steps": (("steps",), int),
        "guidance": (("cfg", "guidance"), float),
        "strength": (("denoise",), float),
        "model": (("ckpt_name", "unet_name"), str),
    }
    settings = {name: nearest_value(graph, found, names, kind) for name, (names, kind) in wanted.items()}
    latent = {"latent": found.get("latent_image")}
    settings |= {side: nearest_value(graph, latent, (side,), int) for side in ("width", "height")}
    sampler = nearest_value(graph, found, ("sampler_name",), str)
    if sampler:
        schedule = nearest_value(graph, found, ("scheduler",), str) or "normal"
        settings["sampler"] = sampler_names.from_identifier(sampler, schedule)
    if settings["strength"] == 1:
        del settings["strength"]
    prompts = Infotext(
        prompt=text_for(graph, guider, "positive" if "positive" in guider else "conditioning"),
        negative_prompt=text_for(graph, guider, "negative"),
        pairs={},
    )
    return prompts, {name: setting for name, setting in settings.items() if setting is not None}


def first_sampler(graph: Mapping[str, Any]) -> Inputs | None:
    """Return the sampler that starts from an empty latent or an image, not from another sampler."""
    samplers = [inputs for key in graph if (inputs := inputs_of(graph, key)) is not None and is_sampler(inputs)]
    for sampler in samplers[:20]:
        before = upstream(graph, {"latent": sampler["latent_image"]})
        if not any(is_sampler(node) for node in before):
            return sampler
    return None


def is_sampler(inputs: Inputs) -> bool:
    return "latent_image" in inputs and ("positive" in inputs or "guider" in inputs)


def text_for(graph: Mapping[str, Any], inputs: Inputs, role: str) -> str:
    """Return the text that reaches this input; at nodes with both roles (ControlNet), only this role is followed."""
    for node in upstream(graph, {role: inputs.get(role)}, skip=OPPOSITE_ROLE.get(role, "")):
        if text := next((node[name] for name in TEXT_INPUTS if isinstance(node.get(name), str)), None):
            return text
    return ""


def nearest_value(graph: Mapping[str, Any], inputs: Inputs, names: tuple[str, ...], kind: type) -> Any:
    """Return the nearest value with one of these names, at the node itself or upstream."""
    for node in (inputs, *upstream(graph, inputs)):
        for name in names:
            found = node.get(name)
            if kind is float and type(found) is int:
                return float(found)
            if type(found) is kind:
                return found
    return None


def upstream(graph: Mapping[str, Any], inputs: Inputs, skip: str = "") -> Iterator[Inputs]:
    """Yield the inputs of every upstream node, nearest first and each once, so that cycles end."""
    visited: set[str] = set()
    queue = deque([inputs])
    while queue:
        for name, link in queue.popleft().items():
            key = source(link)
            if name == skip or key is None or key in visited:
                continue
            visited.add(key)
            # The texts upstream of ConditioningZeroOut have no effect.
            node = None if is_emptied(graph.get(key)) else inputs_of(graph, key)
            if node is not None:
                yield node
                queue.append(node)


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
