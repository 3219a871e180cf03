"""From a spec to a C2PA manifest (C2PA 2.4): what was done, with which weights, to which pictures.

    spec + facts + policy -> Manifest(definition, inputs)      then `sign.py`

The definition is the JSON of c2pa's Builder. `inputs` are the pictures it names by label, whose files the signer is
given by digest. No user and no key is named in it, and the prompt only where both policy and caller want it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any, Literal

from safelight.spec import Denoised, Edit, ImageToImage, Inpaint, TextToImage, Upscale, Variation
from safelight.trust.facts import COMPOSITE_SYNTHETIC, TRAINED, Facts, Origin, public_name
from safelight.trust.marks import LANCZOS, source_type
from safelight.trust.policy import Policy

Relationship = Literal["parentOf", "inputTo", "componentOf"]
Json = dict[str, Any]
WATERMARK = "org.safelight.watermark"
PROMPT_FILE = "prompt.txt"
PYTORCH = "c2pa.types.model.pytorch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A picture that the manifest names as an ingredient."""

    label: str
    title: str
    relationship: Relationship
    digest: str
    """As the spec names the stored file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    definition: Json
    inputs: tuple[Input, ...] = ()
    resources: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    """Files that the definition names, by name."""


def manifest(spec: Denoised | Upscale, facts: Facts, policy: Policy) -> Manifest:
    """The manifest of one picture."""
    inputs = tuple(inputs_of(spec))
    weights = list(weights_of(spec, facts))
    prompt = prompt_of(spec, facts, policy)
    resources = {PROMPT_FILE: prompt.encode(errors="replace")} if prompt else {}
    ingredients = weights + ([PROMPT_INGREDIENT] if prompt else [])
    used = [ingredient["label"] for ingredient in ingredients]
    used += [given.label for given in inputs if given.relationship == "inputTo"]
    actions = list(actions_of(spec, facts, used))
    assertions = [*assertions_of(spec, facts, policy)]
    return Manifest(definition=definition(facts, actions, assertions, ingredients), inputs=inputs, resources=resources)


def composite(digests: Sequence[str], kinds: Sequence[str], facts: Facts, policy: Policy) -> Manifest:
    """The manifest of a grid or a contact sheet.

    Args:
        digests: the pictures in it, by digest.
        kinds: the digital source type of each.
    """
    inputs = tuple(
        Input(label=f"cell-{place}", title=f"picture {place + 1}", relationship="componentOf", digest=digest)
        for place, digest in enumerate(digests)
    )
    kind = TRAINED if set(kinds) == {TRAINED} else COMPOSITE_SYNTHETIC
    placed = {"action": "c2pa.placed", "parameters": {"ingredientIds": [cell.label for cell in inputs]}}
    actions = [action("c2pa.created", facts, digitalSourceType=kind), placed]
    return Manifest(definition=definition(facts, actions, [*training(policy)], []), inputs=inputs)


def derived(digest: str, actions: Sequence[str], facts: Facts) -> Manifest:
    """The manifest of a picture that was made of a stored one by geometry alone.

    Args:
        digest: of the stored picture.
        actions: what was done, in C2PA's terms.
    """
    inputs = (Input(label="parent", title="source picture", relationship="parentOf", digest=digest),)
    opened: Json = {"action": "c2pa.opened", "parameters": {"ingredientIds": ["parent"]}}
    return Manifest(
        definition=definition(facts, [opened, *(action(name, facts) for name in actions)], [], []), inputs=inputs
    )


def definition(facts: Facts, actions: list[Json], assertions: list[Json], ingredients: list[Json]) -> Json:
    done = {"label": "c2pa.actions.v2", "data": {"allActionsIncluded": True, "actions": actions}}
    return {
        "claim_generator_info": [{"name": "safelight", "version": facts.version}],
        "title": "picture",
        "assertions": [done, *assertions],
        "ingredients": ingredients,
    }


# Actions ----------------------------------------------------------------------------------------------------------


def actions_of(spec: Denoised | Upscale, facts: Facts, used: Sequence[str]) -> Iterator[Json]:
    """What was done, in order; `used` labels the ingredients that led it."""
    parameters: Json = {"org.safelight.spec_digest": f"sha256:{spec.digest()}", "org.safelight.asset": facts.uid}
    if used:
        parameters["ingredientIds"] = list(used)
    kind = {"digitalSourceType": found} if (found := source_type(spec, facts)) else {}
    opened: Json = {"action": "c2pa.opened", "parameters": {"ingredientIds": ["parent"]}}
    match spec:
        case TextToImage() | Variation():
            yield action("c2pa.created", facts, parameters=parameters, **kind)
        case Upscale(method=method):
            yield opened
            yield action("c2pa.resized.proportional", facts, parameters=parameters)
            if method != LANCZOS:
                yield action("c2pa.enhanced", facts)
                yield action("c2pa.edited", facts, **kind)
        case ImageToImage() | Edit():
            yield opened
            yield action("c2pa.edited", facts, parameters=parameters, **kind)
        case Inpaint():
            yield opened
            changes = {"changes": [inpainted(facts)]} if facts.region else {}
            yield action("c2pa.edited", facts, parameters=parameters, **kind, **changes)
    if facts.watermark:
        yield action("c2pa.watermarked.unbound", facts)


def action(name: str, facts: Facts, **more: Any) -> Json:
    # C2PA wants RFC 3339 in UTC, and whole seconds are enough.
    when = facts.when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"action": name, "when": when, "softwareAgent": {"name": "safelight", "version": facts.version}, **more}


def inpainted(facts: Facts) -> Json:
    assert facts.region
    left, top, right, bottom = facts.region
    rectangle = {
        "type": "rectangle",
        "unit": "pixel",
        "origin": {"x": left, "y": top},
        "width": right - left,
        "height": bottom - top,
        "inside": True,
    }
    return {"description": "inpainted", "region": [{"type": "spatial", "shape": rectangle}]}


# Ingredients ------------------------------------------------------------------------------------------------------

PROMPT_INGREDIENT: Json = {
    "title": "prompt",
    "format": "text/plain",
    "relationship": "inputTo",
    "label": "prompt",
    "instance_id": "prompt",
    "data_types": [{"type": "c2pa.types.generator.prompt"}],
    "data": {"format": "text/plain", "identifier": PROMPT_FILE},
}


def prompt_of(spec: Denoised | Upscale, facts: Facts, policy: Policy) -> str:
    if isinstance(spec, Upscale) or not (policy.prompt and facts.full_metadata):
        return ""
    return spec.prompt


def inputs_of(spec: Denoised | Upscale) -> Iterator[Input]:
    """The pictures that the spec starts from, and those that lead it."""
    match spec:
        case TextToImage():
            pass
        case Variation():
            yield Input(label="picture", title="picture to vary", relationship="inputTo", digest=spec.init)
        case _:
            yield Input(label="parent", title="source picture", relationship="parentOf", digest=spec.init)
    if isinstance(spec, Upscale):
        return
    for place, control in enumerate(spec.controls):
        yield Input(label=f"control-{place}", title="control picture", relationship="inputTo", digest=control.image)
    for place, asked in enumerate(spec.picture_prompts):
        if asked.image is not None:  # a face may be given as numbers
            label = f"picture-prompt-{place}"
            yield Input(label=label, title="picture prompt", relationship="inputTo", digest=asked.image)


def weights_of(spec: Denoised | Upscale, facts: Facts) -> Iterator[Json]:
    """An ingredient without a file for everything with weights that the spec pins."""
    for place, (role, name, digest) in enumerate(pinned(spec)):
        origin = facts.origins.get(digest, Origin())
        version = {"version": facts.torch_version} if facts.torch_version else {}
        yield {
            "title": f"{role}{public_name(name)}",
            "format": "application/octet-stream",
            "relationship": "inputTo",
            "label": f"weights-{place}",
            "instance_id": f"weights-{place}",
            "data_types": [{"type": "c2pa.types.generator"}, {"type": PYTORCH, **version}],
            "description": described(digest, origin),
            **({"informational_URI": origin.url} if origin.url else {}),
        }


def pinned(spec: Denoised | Upscale) -> Iterator[tuple[str, str, str]]:
    """Role, name and digest of all weights; the model itself has no role before its name."""
    if isinstance(spec, Upscale):
        if spec.method_digest:
            yield "upscaler ", spec.method, spec.method_digest
        return
    yield "", spec.model, spec.model_digest
    if not isinstance(spec, Edit | Variation) and spec.refiner:
        yield "refiner ", spec.refiner.model, spec.refiner.digest
    if spec.vae:
        yield "autoencoder ", spec.vae.name, spec.vae.digest
    if spec.text_encoder:
        yield "text encoder ", spec.text_encoder.name, spec.text_encoder.digest
    for lora in spec.loras:
        yield "LoRA ", lora.name, lora.digest
    for embedding in spec.embeddings:
        yield "embedding ", embedding.name, embedding.digest
    for control in spec.controls:
        yield "control ", control.model, control.digest
    for asked in spec.picture_prompts:
        yield "IP-Adapter ", asked.model, asked.digest
        if asked.encoder is not None and asked.encoder_digest is not None:
            yield "image encoder ", asked.encoder, asked.encoder_digest
        if asked.face_model is not None and asked.face_model_digest is not None:
            yield "face model ", asked.face_model, asked.face_model_digest


def described(digest: str, origin: Origin) -> str:
    parts = [f"sha256:{digest}"]
    if origin.trained_from:
        parts.append("trained from " + ", ".join(f"sha256:{base}" for base in origin.trained_from))
    if origin.data_set:
        parts.append(f"on data set sha256:{origin.data_set}")
    return " ".join(parts)


# Assertions -------------------------------------------------------------------------------------------------------


def assertions_of(spec: Denoised | Upscale, facts: Facts, policy: Policy) -> Iterator[Json]:
    if not isinstance(spec, Upscale):
        yield disclosure(spec.model, f"urn:sha256:{spec.model_digest}", facts, policy)
    elif spec.method != LANCZOS:
        yield disclosure(spec.method, f"urn:sha256:{spec.method_digest}" if spec.method_digest else "", facts, policy)
    yield from training(policy)
    if facts.watermark:
        mark = {"alg": facts.watermark.alg, "key_id": facts.watermark.key_id, "asset": facts.uid}
        if facts.watermark.strength:
            mark["strength"] = facts.watermark.strength
        yield {"label": WATERMARK, "data": mark}


def disclosure(name: str, identifier: str, facts: Facts, policy: Policy) -> Json:
    """C2PA 2.4's AI disclosure."""
    oversight = policy.oversight
    if oversight == "auto":
        oversight = "prompt_guided" if facts.interactive else None
    data: Json = {"modelType": PYTORCH, "modelName": public_name(name)}
    if identifier:
        data["modelIdentifier"] = identifier
    if oversight:
        data["contentProfile"] = {"humanOversightLevel": oversight}
    return {"label": "c2pa.ai-disclosure", "data": data}


def training(policy: Policy) -> Iterator[Json]:
    """What the picture may be used for (CAWG 1.1), where the operator says so."""
    if policy.training != "unstated":
        use = {"allowed": "allowed", "not-allowed": "notAllowed"}[policy.training]
        yield {"label": "cawg.training-mining", "data": {"entries": {"cawg.ai_generative_training": {"use": use}}}}
