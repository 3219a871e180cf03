"""The prompts of several newcomers, encoded in one call; prompts seen lately are not encoded again."""

from collections.abc import Mapping, Sequence

from safelight.engine.job import Job
from safelight.models.adapters import Row
from safelight.models.encode import Conditioning, ConditioningCache, Prompt, encode, zeros_like
from safelight.models.load import Model

CACHE_BYTES = 64 * 2**20
Told = tuple[Prompt, tuple[tuple[str, float], ...]]
"""A prompt, and the LoRAs through which it is read, by digest and weight. Plain data: what names a cached conditioning
must not keep LoRAs in memory."""


class Conditionings:
    def __init__(self) -> None:
        self.caches: dict[str, ConditioningCache[Told]] = {}
        self.adapted: dict[Told, tuple[Row, ...]] = {}
        """What is applied to the text encoders, for the prompts at hand."""

    def fill(self, jobs: Sequence[Job]) -> None:
        """Give jobs of one model their positive and, where guidance may act, negative conditioning."""
        model = jobs[0].model
        self.adapted = {told: rows_of(job) for job in jobs for told in told_by(job)}
        if jobs[0].strict:
            # In a batch of one, always: a neighbour changes the last bits.
            found = {told: encode_by(model, [told], self.adapted)[0] for told in self.adapted}
        else:
            found = dict(zip(self.adapted, self.cache(model).encode_missing(list(self.adapted)), strict=True))
        self.adapted = {}
        for job in jobs:
            job.positive, *rest = (found[told] for told in told_by(job))
            job.negative = negative(job, rest[0]) if rest else None

    def cache(self, model: Model) -> "ConditioningCache[Told]":
        if model.digest not in self.caches:
            self.caches[model.digest] = ConditioningCache(
                lambda told: encode_by(model, told, self.adapted), limit_bytes=CACHE_BYTES
            )
        return self.caches[model.digest]


def told_by(job: Job) -> list[Told]:
    """A LoRA changes what all words mean, those of the negative prompt too."""
    loras = tuple((worn.lora.digest, worn.text_weight) for worn in job.loras if any(worn.on_text()))
    return [(prompt, loras) for prompt in prompts_of(job)]


def rows_of(job: Job) -> tuple[Row, ...]:
    """What is applied to each text encoder."""
    by_lora = [worn.on_text() for worn in job.loras]
    return tuple(tuple(applied for rows in by_lora for applied in rows[i]) for i in range(len(job.model.text_encoders)))


def prompts_of(job: Job) -> list[Prompt]:
    words = [job.spec.prompt]
    if job.spec.guidance > 1 and not job.model.description.takes_guidance:
        words.append(job.spec.negative_prompt)
    return [(text, job.spec.clip_skip) for text in words]


def negative(job: Job, encoded: Conditioning) -> Conditioning:
    """SDXL was trained to be led away from zeros, not from an encoded empty prompt."""
    empty = not job.spec.negative_prompt
    return zeros_like(encoded) if empty and job.model.description.force_zeros_for_empty_prompt else encoded


def encode_by(model: Model, told: Sequence[Told], adapted: Mapping[Told, tuple[Row, ...]]) -> list[Conditioning]:
    return encode(
        model.text_encoders,
        [prompt for prompt, _ in told],
        penultimate=model.description.family.penultimate,
        adapted=[adapted[one] for one in told] if any(loras for _, loras in told) else None,
    )
