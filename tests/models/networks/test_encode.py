from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.vocabulary import sd1, sd2
from torch import Tensor

from safelight.errors import InvalidRequest, UnsupportedOption
from safelight.models.networks import encode as encode_module
from safelight.models.networks.encode import Conditioning, ConditioningCache, Prompt, TextEncoder, zeros_like
from safelight.models.networks.tokenize import Tokenizer

LONG = "a photo of the red apple, " * 15
"""Two chunks."""
PROMPTS = ["a photo of the red apple", "", "an astronaut riding a horse, masterpiece!", "x " * 75]
TOLERANCE = 1e-5
"""Same layers and weights; only the batch differs, which changes float32 sums in their last bits."""


def encode(encoders: Sequence[TextEncoder], prompts: Sequence[tuple[Any, ...]], **rule: bool) -> list[Conditioning]:
    """Prompts as words and clip_skip."""
    return encode_module.encode(encoders, [Prompt(*prompt) for prompt in prompts], **rule)


def text_encoder(folder: Path, layout: Any, *, width: int, layers: int, projection: int | None = None) -> TextEncoder:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = Tokenizer.load(layout(folder))
    config = CLIPTextConfig(
        vocab_size=tokenizer.vocabulary_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        projection_dim=projection or width,
        bos_token_id=tokenizer.bos,
        eos_token_id=tokenizer.eos,
    )
    torch.manual_seed(width)
    network = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()
    for parameter in network.parameters():  # as built, layers hardly differ and the mean of a state is zero
        parameter.data += 0.2 * torch.randn_like(parameter)
    final_norm = getattr(network, "text_model", network).final_layer_norm
    final_norm.bias.data += 0.5  # like CLIP's, states then have a mean that is more than rounding error
    return TextEncoder(tokenizer, network)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return text_encoder(tmp_path_factory.mktemp("sd1"), sd1, width=32, layers=4)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[TextEncoder, TextEncoder]:
    first = text_encoder(tmp_path_factory.mktemp("first"), sd1, width=32, layers=4)
    return first, text_encoder(tmp_path_factory.mktemp("second"), sd2, width=40, layers=5, projection=24)


def transformers_tokenizer(encoder: TextEncoder, folder: Path, layout: Any) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(layout(folder))


def diffusers_states(encoder: TextEncoder, folder: Path, layout: Any, prompt: str, clip_skip: int) -> Tensor:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=None,
        text_encoder=encoder.network,
        tokenizer=transformers_tokenizer(encoder, folder, layout),
        unet=None,
        scheduler=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    # diffusers 0.42 looks for `text_encoder.text_model.final_layer_norm`, which transformers 5 no longer has.
    encoder.network.__dict__["text_model"] = encoder.network
    try:
        skip = None if clip_skip == 1 else clip_skip - 1  # diffusers counts skipped layers
        with torch.no_grad():
            return pipeline.encode_prompt(prompt, "cpu", 1, False, clip_skip=skip)[0][0]
    finally:
        del encoder.network.__dict__["text_model"]


@pytest.mark.parametrize("clip_skip", [1, 2, 3])
@pytest.mark.parametrize("layout", [sd1, sd2])
def test_stable_diffusions_states_match_those_of_diffusers(tmp_path: Path, layout: Any, clip_skip: int) -> None:
    encoder = text_encoder(tmp_path, layout, width=32, layers=4)
    found = encode([encoder], [(prompt, clip_skip) for prompt in PROMPTS], penultimate=False)
    for prompt, conditioning in zip(PROMPTS, found, strict=True):
        expected = diffusers_states(encoder, tmp_path, layout, prompt, clip_skip)
        assert conditioning.pooled is None
        assert (conditioning.context - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("clip_skip", [1, 2, 3])
def test_sdxls_states_match_those_of_diffusers(
    tmp_path: Path, two: tuple[TextEncoder, TextEncoder], clip_skip: int
) -> None:
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline(
        vae=None,
        text_encoder=two[0].network,
        text_encoder_2=two[1].network,
        tokenizer=transformers_tokenizer(two[0], tmp_path / "first", sd1),
        tokenizer_2=transformers_tokenizer(two[1], tmp_path / "second", sd2),
        unet=None,
        scheduler=None,
        add_watermarker=False,
    )
    found = encode(two, [(prompt, clip_skip) for prompt in PROMPTS], penultimate=True)
    for prompt, conditioning in zip(PROMPTS, found, strict=True):
        skip = None if clip_skip == 1 else clip_skip - 1
        with torch.no_grad():
            context, negative, pooled, negative_pooled = pipeline.encode_prompt(
                prompt, device="cpu", do_classifier_free_guidance=True, clip_skip=skip
            )
        assert conditioning.pooled is not None
        assert (conditioning.context - context[0]).abs().max() <= TOLERANCE
        assert (conditioning.pooled - pooled[0]).abs().max() <= TOLERANCE
        zeros = zeros_like(conditioning)  # no negative prompt given: force_zeros_for_empty_prompt
        assert torch.equal(zeros.context, negative[0])
        assert torch.equal(zeros.pooled, negative_pooled[0])


def test_every_text_encoder_is_called_once_for_any_number_of_prompts(two: tuple[TextEncoder, TextEncoder]) -> None:
    calls: list[tuple[int, ...]] = []
    hooks = [
        encoder.network.register_forward_hook(
            lambda _module, args, kwargs, _output: calls.append(tuple((args or tuple(kwargs.values()))[0].shape)),
            with_kwargs=True,
        )
        for encoder in two
    ]
    encode(two, [("a cat", 1), (LONG, 2), ("", 1), ("one BREAK (two:1.2) BREAK three", 3)], penultimate=True)
    for hook in hooks:
        hook.remove()
    assert calls == [(7, 77), (7, 77)]


def test_prompts_of_one_call_do_not_affect_each_other(one: TextEncoder) -> None:
    prompts = [("a (red:1.4) apple", 1), (LONG, 1), ("a (red:1.4) apple", 2), ("", 3), ("(cat:0.5) [dog]", 1)]
    together = encode([one], prompts, penultimate=False)
    for prompt, conditioning in zip(prompts, together, strict=True):
        (t5_only,) = encode([one], [prompt], penultimate=False)
        assert (t5_only.context - conditioning.context).abs().max() <= TOLERANCE


def test_a_long_prompt_is_its_chunks_in_a_row(two: tuple[TextEncoder, TextEncoder]) -> None:
    """And its pooled vector that of the first chunk."""
    append_t5, first, second = encode(two, [("a cat BREAK a dog", 1), ("a cat", 1), ("a dog", 1)], penultimate=True)
    assert append_t5.context.shape == (154, 72)
    assert torch.equal(append_t5.context, torch.cat([first.context, second.context]))
    assert append_t5.pooled is not None
    assert first.pooled is not None
    assert torch.equal(append_t5.pooled, first.pooled)


def test_weights_of_one_change_no_bit(one: TextEncoder) -> None:
    plain, weighted, nested = encode(
        [one], [("a red apple", 1), ("(a red apple:1.0)", 1), ("[(a red apple)]", 1)], penultimate=False
    )
    assert torch.equal(plain.context, weighted.context)
    assert torch.equal(plain.context, nested.context)


@pytest.mark.parametrize("weight", [0.0, 0.5, 0.9, 1.1, 1.5, 2.0])
def test_a_weight_multiplies_its_tokens_and_the_mean_stays(one: TextEncoder, weight: float) -> None:
    plain, weighted = encode([one], [("a red apple", 1), (f"a (red:{weight}) apple", 1)], penultimate=False)
    word = slice(2, 2 + len(one.tokenizer.ids("red")))
    multiplied = plain.context.clone()
    multiplied[word] *= weight
    expected = multiplied * (plain.context.mean() / multiplied.mean())
    # The closed form of AUTOMATIC1111 for one chunk; sums taken in another order.
    assert (weighted.context - expected).abs().max() <= TOLERANCE
    assert weighted.context.mean().item() == pytest.approx(plain.context.mean().item(), rel=1e-4)


def test_each_chunk_keeps_its_own_mean(one: TextEncoder) -> None:
    plain, weighted = encode([one], [("a cat BREAK a dog", 1), ("a cat BREAK a (dog:1.8)", 1)], penultimate=False)
    assert torch.equal(plain.context[:77], weighted.context[:77])
    assert plain.context[77:].mean().item() == pytest.approx(weighted.context[77:].mean().item(), rel=1e-4)


@pytest.mark.parametrize("words", ["(a red apple:0)", "(a red apple:-3)", "(a:100) (b:-100)", "(" * 48 + "a"])
def test_no_weight_blows_the_states_up(one: TextEncoder, words: str) -> None:
    plain, weighted = encode([one], [("a red apple", 1), (words, 1)], penultimate=False)
    # Weights reach 100 and the mean's change is held to at least 0.1.
    assert weighted.context.abs().max() <= 1100 * plain.context.abs().max()
    assert weighted.context.isfinite().all()


def test_states_without_a_mean_are_only_multiplied(tmp_path: Path) -> None:
    """A final norm as built makes every state's mean rounding error, which is nothing to scale by."""
    encoder = text_encoder(tmp_path, sd1, width=32, layers=2)
    torch.nn.init.ones_(encoder.network.final_layer_norm.weight)
    torch.nn.init.zeros_(encoder.network.final_layer_norm.bias)
    plain, weighted = encode([encoder], [("a cat", 1), ("a (cat:1.5)", 1)], penultimate=False)
    assert torch.equal(weighted.context[0], plain.context[0])
    assert torch.equal(weighted.context[2], 1.5 * plain.context[2])


def test_half_precision_stays_half_precision(tmp_path: Path) -> None:
    encoder = text_encoder(tmp_path, sd1, width=32, layers=2)
    encoder.network.to(torch.bfloat16)
    (conditioning,) = encode([encoder], [("a (cat:1.5)", 1)], penultimate=False)
    assert conditioning.context.dtype == torch.bfloat16


def test_a_depth_the_encoder_does_not_have_is_refused(one: TextEncoder) -> None:
    encode([one], [("a cat", 4)], penultimate=False)
    with pytest.raises(UnsupportedOption, match=r"clip_skip: 5 is more than the 4 layers"):
        encode([one], [("a cat", 5)], penultimate=False)


def test_an_invalid_weight_is_refused(one: TextEncoder) -> None:
    with pytest.raises(InvalidRequest, match="not a weight"):
        encode([one], [("(cat:nan)", 1)], penultimate=False)


def test_no_prompts_give_no_conditionings(one: TextEncoder) -> None:
    assert encode([one], [], penultimate=False) == []


class Counted:
    """An encoder of 100 bytes a prompt that remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[list[Prompt]] = []

    def __call__(self, prompts: Any) -> list[Conditioning]:
        self.calls.append(list(prompts))
        return [Conditioning(torch.full((5, 5), float(len(words))), None) for words, _ in prompts]


def test_only_missing_prompts_are_encoded_and_each_once() -> None:
    counted = Counted()
    cache = ConditioningCache(counted, limit_bytes=1000)
    first = cache.encode_missing([("a", 1), ("bb", 1), ("a", 1), ("a", 2)])
    second = cache.encode_missing([("bb", 1), ("ccc", 1)])
    assert cache.encode_missing([("ccc", 1)]) == second[1:]
    assert counted.calls == [[("a", 1), ("bb", 1), ("a", 2)], [("ccc", 1)]]
    assert [c.context[0, 0].item() for c in first + second] == [1, 2, 1, 1, 2, 3]
    assert first[0] is first[2]


def test_the_least_recently_used_conditioning_is_evicted_first() -> None:
    counted = Counted()
    cache = ConditioningCache(counted, limit_bytes=250)  # two prompts
    cache.encode_missing([("a", 1), ("b", 1)])
    cache.encode_missing([("a", 1)])
    cache.encode_missing([("c", 1)])
    assert cache.size_bytes == 200
    cache.encode_missing([("a", 1)])
    cache.encode_missing([("b", 1)])
    assert counted.calls == [[("a", 1), ("b", 1)], [("c", 1)], [("b", 1)]]


@pytest.mark.parametrize("limit_bytes", [0, 50, 100])
def test_a_call_larger_than_the_cache_returns_all_conditionings(limit_bytes: int) -> None:
    cache = ConditioningCache(Counted(), limit_bytes=limit_bytes)
    found = cache.encode_missing([("a", 1), ("bb", 1), ("a", 1)])
    assert [c.context[0, 0].item() for c in found] == [1, 2, 1]
    assert cache.size_bytes <= limit_bytes


def test_a_cleared_cache_encodes_anew() -> None:
    counted = Counted()
    cache = ConditioningCache(counted, limit_bytes=1000)
    cache.encode_missing([("a", 1)])
    cache.clear()
    cache.encode_missing([("a", 1)])
    assert (len(counted.calls), cache.size_bytes) == (2, 100)


def test_a_cached_conditioning_does_not_hold_its_batch_in_memory(two: tuple[TextEncoder, TextEncoder]) -> None:
    for conditioning in encode(two, [("a", 1), (LONG, 1), ("(b)", 2)], penultimate=True):
        for tensor in (conditioning.context, conditioning.pooled):
            assert tensor is not None
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
