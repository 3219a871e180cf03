"""Encodes the prompts of several new jobs in one call; recent prompts are cached."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from itertools import islice

import torch

from safelight.engine.job import EncodedPrompts, Job
from safelight.errors import InvalidRequest, UnsupportedOption
from safelight.models.checkpoints.families import Description
from safelight.models.hooks.adapters import Row
from safelight.models.networks.encode import Conditioning, ConditioningCache, Prompt, chunks_of, encode, zeros_like
from safelight.models.networks.image_encoder import ImageEncoder
from safelight.models.networks.load import Model
from safelight.models.networks.t5 import append_t5, t5_only
from safelight.models.networks.textual_inversion import Embedding, names_in
from safelight.models.networks.tokenize import Tokenizer
from safelight.prompts.prompt_schedule import parts_of, unroll
from safelight.spec import Denoised, Variation

CACHE_BYTES = 64 * 2**20
MAX_CHUNKS = 256
"""Most chunks in all prompts of one job together: a bound on memory."""

Reading = tuple[Prompt, tuple[Hashable, ...]]
"""A prompt, and the LoRAs that change its encoding, by digest and weight. Plain data: the key of a cached conditioning
must not keep LoRAs in memory."""
Strand = tuple[Reading, ...]
"""One prompt of a job, with its text in each step."""


class Conditionings:
    def __init__(self) -> None:
        self.adapted: dict[Reading, tuple[Row, ...]] = {}
        """The LoRAs applied to the text encoders during one call, by prompt."""
        self.model: Model | None = None
        """The model of the call; its caches must not keep text encoders that replace its own."""

    def fill(self, jobs: Sequence[Job]) -> None:
        """Give jobs of one model their conditionings for each step; the jobs are prepared, so their steps are known.

        Raises:
            InvalidRequest, UnsupportedOption: a prompt cannot be parsed or drawn.
        """
        for text_digest in dict.fromkeys(job.model.text_digest for job in jobs):
            self.fill_alike([job for job in jobs if job.model.text_digest == text_digest])

    def fill_alike(self, jobs: Sequence[Job]) -> None:
        """The same, for jobs with the same text encoders."""
        model = jobs[0].model
        if model.image_encoder:
            for job in jobs:
                job.encoded = encode_picture(job, model.image_encoder)
            return
        strands = {job.id: strands_of(job) for job in jobs}
        for job in jobs:
            rows = rows_of(job)
            self.adapted |= {reading: rows for strand in strands[job.id] for reading in strand}
        self.model = model
        try:
            if jobs[0].strict:
                # Always in a batch of one: the batch size changes the last bits.
                found = {reading: encode_by(model, [reading], self.adapted)[0] for reading in self.adapted}
            else:
                found = dict(zip(self.adapted, self.cache(model).encode_missing(list(self.adapted)), strict=True))
        finally:
            self.adapted, self.model = {}, None
        for job in jobs:
            job.encoded = encode_prompts(
                job, [tuple(found[reading] for reading in strand) for strand in strands[job.id]]
            )

    def cache(self, model: Model) -> "ConditioningCache[Reading]":
        caches: dict[str, ConditioningCache[Reading]] = model.cache.setdefault(self, {})
        if model.text_digest not in caches:
            caches[model.text_digest] = ConditioningCache[Reading](self.encode, limit_bytes=CACHE_BYTES)
        return caches[model.text_digest]

    def encode(self, readings: Sequence[Reading]) -> list[Conditioning]:
        assert self.model is not None
        return encode_by(self.model, readings, self.adapted)


def strands_of(job: Job) -> list[Strand]:
    """The prompts combined by AND, those of effects, and the negative one if a row needs it."""
    model = job.model
    changed = tuple(key for active in job.effects.values() if (key := active.text_key()))
    further = [text for active in job.effects.values() for text in active.prompts()]
    prompts = prompts_of(job.spec, model.description, job.passes, job.embeddings, further=further, name=model.name)
    if len(asked := {prompt for strand in prompts for prompt in strand}) > 2:  # else each is bounded on its own
        require_bounded(asked, model.text_encoders[0].tokenizer)
    return [tuple((prompt, changed) for prompt in strand) for strand in prompts]


def prompts_of(
    spec: Denoised,
    about: Description,
    passes: Sequence[int],
    embeddings: Sequence[Embedding],
    *,
    further: Sequence[str] = (),
    name: str,
) -> list[tuple[Prompt, ...]]:
    """The text in each step of every prompt combined by AND, of `further` ones, and of the negative prompt if used.

    Raises:
        InvalidRequest: too many parts or changes.
        UnsupportedOption: AND, with a network that does not support classifier-free guidance.
    """
    words = [part.text for part in parts_of(spec.prompt)]
    joined = len(words) > 1
    if not about.supports_cfg and joined:
        raise UnsupportedOption("prompt", f"AND needs classifier-free guidance, which {name} does not support")
    words += further
    if joined or (spec.guidance > 1 and about.supports_cfg):
        words.append(spec.negative_prompt)
    return [tuple(prompt_of(spec, embeddings, text) for text in unroll(one, passes)) for one in words]


def rows_of(job: Job) -> tuple[Row, ...]:
    """The adapters applied to each text encoder; T5 is the last."""
    by_effect = [rows for active in job.effects.values() if (rows := active.on_text())]
    encoders = range(len(job.model.prompt_encoders))
    return tuple(tuple(applied for rows in by_effect for applied in rows[i]) for i in encoders)


def prompt_of(spec: Denoised, embeddings: Sequence[Embedding], words: str) -> Prompt:
    """A prompt with only the embeddings that it names: fewer cache keys, more hits."""
    if not embeddings:
        return Prompt(words, spec.clip_skip)
    named = names_in(words, [embedding.name for embedding in embeddings])
    return Prompt(words, spec.clip_skip, tuple(embedding for embedding in embeddings if embedding.name in named))


def require_bounded(prompts: Collection[Prompt], tokenizer: Tokenizer) -> None:
    """
    Raises:
        InvalidRequest: invalid weights, or more chunks than one job may have.
    """
    num_chunks = sum(len(chunks_of(prompt, tokenizer)) for prompt in prompts)
    if num_chunks > MAX_CHUNKS:
        raise InvalidRequest(f"prompt: all steps together need {num_chunks} chunks of tokens; at most {MAX_CHUNKS}")


def encode_prompts(job: Job, strands: Sequence[tuple[Conditioning, ...]]) -> EncodedPrompts:
    rest = iter(strands)
    return EncodedPrompts(
        positive=tuple(islice(rest, job.num_parts)),
        weights=tuple(part.weight for part in parts_of(job.spec.prompt)),
        of_effects={name: tuple(islice(rest, len(active.prompts()))) for name, active in job.effects.items()},
        negative=next((negative(job, strand) for strand in rest), None),
    )


def encode_picture(job: Job, eye: ImageEncoder) -> EncodedPrompts:
    """The CLIP embedding of the picture, the same in every step; zeros for the negative row."""
    assert isinstance(job.spec, Variation), "a model that is told pictures draws variations and nothing else"
    seen = Conditioning(eye.embed(job.pictures[job.spec.init])[None], None)
    return EncodedPrompts(
        positive=((seen,) * job.total_steps,),
        weights=(1.0,),
        negative=(zeros_like(seen),) * job.total_steps if job.uses_cfg else None,
    )


def negative(job: Job, encoded: tuple[Conditioning, ...]) -> tuple[Conditioning, ...]:
    """The conditionings of the negative prompt: zeros for an empty one with SDXL, which was trained so."""
    if job.spec.negative_prompt or not job.model.description.force_zeros_for_empty_prompt:
        return encoded
    return (zeros_like(encoded[0]),) * len(encoded)


def encode_by(
    model: Model, readings: Sequence[Reading], adapted: Mapping[Reading, tuple[Row, ...]]
) -> list[Conditioning]:
    family, prompts = model.description.family, [prompt for prompt, _ in readings]
    rows = [adapted[one] for one in readings] if any(loras for _, loras in readings) else None
    clip = encode(
        model.text_encoders,
        prompts,
        penultimate=family.penultimate,
        pooled="pooler_output" if family.t5_alone else "text_embeds",
        adapted=rows,
    )
    return with_t5(model, prompts, clip, rows) if family.t5 else clip


@torch.no_grad()
def with_t5(
    model: Model, prompts: Sequence[Prompt], clip: Sequence[Conditioning], adapted: Sequence[Sequence[Row]] | None
) -> list[Conditioning]:
    """Append T5's states to CLIP's conditionings; zeros if the checkpoint has no T5."""
    about, device = model.description, model.placement.device
    length, put = about.family.t5_tokens, t5_only if about.family.t5_alone else append_t5
    if model.t5 is None:
        silence = torch.zeros(length, int(about.unet["joint_attention_dim"]), device=device)
        return [put(one, silence) for one in clip]
    rows = None if adapted is None else [of_readers[-1] for of_readers in adapted]
    states = model.t5.states([prompt.text for prompt in prompts], length, rows)
    return [put(one, state) for one, state in zip(clip, states, strict=True)]
