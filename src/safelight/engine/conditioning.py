"""The prompts of several newcomers, encoded in one call; prompts seen lately are not encoded again."""

from collections.abc import Sequence

from safelight.engine.job import Job
from safelight.models.encode import Conditioning, ConditioningCache, Prompt, encode, zeros_like
from safelight.models.load import Model

CACHE_BYTES = 64 * 2**20


class Conditionings:
    def __init__(self) -> None:
        self.caches: dict[str, ConditioningCache] = {}

    def fill(self, jobs: Sequence[Job]) -> None:
        """Give jobs of one model their positive and, where guidance may act, negative conditioning."""
        prompts = [prompt for job in jobs for prompt in prompts_of(job)]
        if jobs[0].strict:
            # In a batch of one, always: a neighbour changes the last bits.
            found = {prompt: encode_by(jobs[0].model, [prompt])[0] for prompt in prompts}
        else:
            found = dict(zip(prompts, self.cache(jobs[0].model).encode_missing(prompts), strict=True))
        for job in jobs:
            job.positive, *rest = (found[prompt] for prompt in prompts_of(job))
            job.negative = negative(job, rest[0]) if rest else None

    def cache(self, model: Model) -> ConditioningCache:
        if model.digest not in self.caches:
            self.caches[model.digest] = ConditioningCache(
                lambda prompts: encode_by(model, prompts), limit_bytes=CACHE_BYTES
            )
        return self.caches[model.digest]


def prompts_of(job: Job) -> list[Prompt]:
    words = [job.spec.prompt]
    if job.spec.guidance > 1 and not job.model.description.takes_guidance:
        words.append(job.spec.negative_prompt)
    return [(text, job.spec.clip_skip) for text in words]


def negative(job: Job, encoded: Conditioning) -> Conditioning:
    """SDXL was trained to be led away from zeros, not from an encoded empty prompt."""
    empty = not job.spec.negative_prompt
    return zeros_like(encoded) if empty and job.model.description.force_zeros_for_empty_prompt else encoded


def encode_by(model: Model, prompts: Sequence[Prompt]) -> list[Conditioning]:
    return encode(model.text_encoders, prompts, penultimate=model.description.family.penultimate)
