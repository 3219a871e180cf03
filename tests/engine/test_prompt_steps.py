"""The prompt of each step of a job, and its cost."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.fakes import SteppedEngine, draw, psnr, spec_for
from torch import Tensor

from safelight.errors import InvalidRequest, UnsupportedOption
from safelight.events import Failed, Stepped
from safelight.models.backends.denoiser import Conditions
from safelight.models.backends.eager import eager_denoiser
from safelight.models.networks.encode import Conditioning, Prompt, encode
from safelight.models.networks.load import Model
from safelight.models.networks.textual_inversion import Embedding

Models = Callable[[str], Model]
SAME_DB = 60.0
"""Another order of summation changes a few pixels by one level."""


class Listening:
    """A denoiser that records the conditions of every row of every call."""

    def __init__(self) -> None:
        self.encoded: list[Tensor] = []

    def __call__(self, model: Model) -> Any:
        denoise = eager_denoiser(model)

        def events_of(latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
            self.encoded.append(conditions.context)
            return denoise(latents, timesteps, conditions)

        return events_of


def read(model: Model, *texts: str) -> list[Conditioning]:
    return encode(model.text_encoders, [Prompt(text) for text in texts], penultimate=False)


def encoded(spec: Any, model: Model) -> list[list[str]]:
    """For every call, the prompt of every row, found among a few known ones."""
    known = ["a cat", "a dog", "a horse", "", "cat AND dog"]
    listening = Listening()
    with SteppedEngine(listening) as job_service:
        job = job_service.add(spec, model)
        job_service.finish()
        job_service.image(job)
    encoded = dict(zip(known, read(model, *known), strict=True))

    def words_of(row: Tensor) -> str:
        [word] = [
            word for word, conditioning in encoded.items() if torch.allclose(conditioning.context, row, atol=1e-5)
        ]
        return word

    return [[words_of(row) for row in call] for call in listening.encoded]


def test_each_step_is_told_its_own_words(model: Models) -> None:
    spec = spec_for(model("sd1"), prompt="a [cat:dog:2]", negative_prompt="[a horse|]", steps=4, guidance=3.0)
    assert encoded(spec, model("sd1")) == [["a cat", "a horse"], ["a cat", ""], ["a dog", "a horse"], ["a dog", ""]]


def test_both_calls_of_a_step_are_told_the_same(model: Models) -> None:
    spec = spec_for(model("sd1"), prompt="a [cat|dog]", steps=3, guidance=1.0, sampler="Heun")
    assert encoded(spec, model("sd1")) == [["a cat"], ["a cat"], ["a dog"], ["a dog"], ["a cat"]]


@pytest.mark.parametrize(
    ("when", "second"),
    [("0.5", ["a dog", "a dog"]), ("1.5", ["a cat", "a dog"]), ("5", ["a cat", "a dog"]), ("6", ["a cat", "a cat"])],
)
def test_the_second_pass_goes_on_counting(when: str, second: list[str], model: Models) -> None:
    """4 steps, then 4 at strength 0.5, which are 2."""
    highres = {"scale": 1.5, "strength": 0.5}
    spec = spec_for(model("sd1"), prompt=f"a [cat:dog:{when}]", steps=4, guidance=1.0, highres=highres)
    assert [words for [words] in encoded(spec, model("sd1"))][4:] == second


def test_all_that_newcomers_will_say_is_encoded_in_one_call(model: Models) -> None:
    [encoder] = model("sd1").text_encoders
    rows: list[int] = []
    hook = encoder.network.register_forward_hook(lambda _module, args, _output: rows.append(len(args[0])))
    try:
        with SteppedEngine() as job_service:
            job_service.add(
                spec_for(model("sd1"), prompt="a [cat:dog:2]", negative_prompt="[x|y]", guidance=2.0), model("sd1")
            )
            job_service.add(
                spec_for(model("sd1"), prompt="a [dog|cat] AND[y|z]", negative_prompt="x", guidance=2.0), model("sd1")
            )
            job_service.finish()
    finally:
        hook.remove()
    assert rows == [5], "a cat, a dog, x, y, z"


def test_and_costs_a_row_for_each_prompt(model: Models) -> None:
    with SteppedEngine() as job_service:
        job = job_service.add(spec_for(model("sd1"), prompt="a cat AND a dog AND a horse", guidance=3.0), model("sd1"))
        plain = job_service.add(spec_for(model("sd1"), guidance=3.0), model("sd1"))
        assert job.megapixels == 2 * plain.megapixels
        job_service.finish()
        assert {event.batch_rows for event in job_service.events_of(job, Stepped)} == {4 + 2}
        assert job.compute_s == pytest.approx(2 * plain.compute_s)


def test_and_takes_its_rows_out_of_the_budget(model: Models) -> None:
    row = 64 * 64 / 1e6
    with SteppedEngine(budget_megapixels=5 * row) as job_service:
        jobs = [
            job_service.add(spec_for(model("sd1"), prompt="a cat AND a dog", guidance=3.0), model("sd1"))
            for _ in range(2)
        ]
        job_service.finish()
        assert {event.batch_rows for job in jobs for event in job_service.events_of(job, Stepped)} == {3}, (
            "two jobs are 6 rows"
        )


def test_and_is_the_formula(model: Models) -> None:
    """uncond + sum of w_i * guidance * (cond_i - uncond), each output computed in a call of its own."""
    tiny = model("sd1")
    words, weights, guidance = ["a cat", " a dog", " a horse"], [1.0, 0.5, -0.25], 4.0
    with SteppedEngine() as job_service:
        prompt = "a cat AND a dog :0.5 AND a horse :-0.25"
        job = job_service.add(spec_for(tiny, prompt=prompt, guidance=guidance, steps=1), tiny)
        job_service.engine.begin([job])
        from safelight.diffusion.advance import Rows

        rows = Rows.gather([(job.now.schedule, 0)])
        with torch.inference_mode():
            found = job_service.engine.runner.denoise([job], rows)[0]

    denoise = eager_denoiser(tiny)
    latent = job.now.latents[0][None] * rows.input_scale

    def ask(text: str) -> Tensor:
        [conditioning] = read(tiny, text)
        context = conditioning.context[None]
        conditions = Conditions(context=context, mask=None, pooled=None, time_ids=None, guidance=None)
        return denoise(latent, rows.timesteps, conditions)[0]

    with torch.inference_mode():
        uncond = ask("")
        expected = uncond + sum(w * guidance * (ask(text) - uncond) for text, w in zip(words, weights, strict=True))
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()  # the batch changes float32's last bits


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_parts_that_say_the_same_or_nothing_leave_the_picture(kind: str, guidance: float, model: Models) -> None:
    """Also without guidance: a single prompt then has no second row, but prompts with AND have."""
    alone = draw(spec_for(model(kind), prompt="a cat", guidance=guidance), model(kind))
    for prompt in ("a cat AND a dog :0", "a cat :0.5 AND a cat :0.5", "a cat :2 AND a cat :-1"):
        joined = draw(spec_for(model(kind), prompt=prompt, guidance=guidance), model(kind))
        assert psnr(joined, alone) >= SAME_DB
    other = draw(spec_for(model(kind), prompt="a cat AND a dog, masterpiece", guidance=guidance), model(kind))
    assert psnr(other, alone) < SAME_DB


def test_and_in_a_negative_prompt_is_a_word(model: Models) -> None:
    spec = spec_for(model("sd1"), prompt="a cat", negative_prompt="cat AND dog", steps=2, guidance=3.0)
    assert encoded(spec, model("sd1")) == [["a cat", "cat AND dog"]] * 2


def test_a_distilled_network_cannot_join(model: Models) -> None:
    with SteppedEngine() as job_service:
        job = job_service.add(spec_for(model("lcm"), prompt="a cat AND a dog", sampler="Default"), model("lcm"))
        job_service.finish()
        failed = job_service.last(job)
        assert isinstance(failed, Failed)
        assert isinstance(failed.error, UnsupportedOption)
        assert "AND" in str(failed.error)


def test_a_job_whose_prompts_need_too_much_memory_is_refused_alone(model: Models) -> None:
    huge = "[" + "|".join(f"w{number} {'BREAK ' * 10}x" for number in range(50)) + "]"
    with SteppedEngine() as job_service:
        bad, good = (
            job_service.add(spec_for(model("sd1"), prompt=prompt, steps=50), model("sd1")) for prompt in (huge, "a cat")
        )
        job_service.engine.step()
        failed = job_service.last(bad)
        assert isinstance(failed, Failed)
        assert isinstance(failed.error, InvalidRequest)
        assert "need 551 chunks of tokens; at most 256" in str(failed.error)
        job_service.finish()
        job_service.image(good)


def test_too_many_parts_are_refused_before_there_is_a_job(model: Models) -> None:
    with SteppedEngine() as job_service, pytest.raises(InvalidRequest, match="AND joins 17 prompts"):
        job_service.add(spec_for(model("sd1"), prompt=" AND ".join("a" * 17)), model("sd1"))


def test_a_name_means_the_file_that_the_job_has(model: Models) -> None:
    """Two files with the same name, in one engine and one batch: the cache keeps them apart."""
    tiny = model("sd1")
    spec = spec_for(tiny, prompt="a my-cat", guidance=8.0)
    one, other = (
        Embedding("my-cat", digest * 64, (torch.randn(2, 32, generator=torch.Generator().manual_seed(seed)),))
        for digest, seed in (("1", 1), ("2", 2))
    )
    with SteppedEngine() as job_service:
        jobs = [job_service.add(spec, tiny, embeddings=embeddings) for embeddings in ((one,), (other,), (), (one,))]
        job_service.finish()
        first, second, words, again = (job_service.image(job) for job in jobs)
    assert psnr(first, again) >= SAME_DB
    assert psnr(words, draw(spec, tiny)) >= SAME_DB
    for unlike in (psnr(first, second), psnr(first, words), psnr(second, words)):
        assert unlike < SAME_DB


def test_an_embedding_changes_nothing_for_its_neighbours(model: Models) -> None:
    tiny = model("sd1")
    mine = Embedding("my-cat", "1" * 64, (torch.randn(3, 32, generator=torch.Generator().manual_seed(1)),))
    plain, strict = (spec_for(tiny, prompt="a cat", determinism=kind) for kind in ("fast", "strict"))
    alone = draw(strict, tiny)
    with SteppedEngine() as job_service:
        job_service.add(spec_for(tiny, prompt="my-cat [my-cat|a cat]"), tiny, embeddings=(mine,))
        jobs = [job_service.add(spec, tiny) for spec in (plain, strict)]
        job_service.finish()
        assert psnr(job_service.image(jobs[0]), draw(plain, tiny)) >= SAME_DB
        assert job_service.image(jobs[1]).tobytes() == alone.tobytes()
