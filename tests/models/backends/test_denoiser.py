from collections.abc import Callable

import pytest
import torch

from safelight.models.backends.denoiser import Conditions, stack
from safelight.models.backends.eager import eager_denoiser, guidance_embedding
from safelight.models.networks.encode import Conditioning
from safelight.models.networks.load import Model


def words(tokens: int, *, pooled: bool = False) -> Conditioning:
    generator = torch.Generator().manual_seed(tokens)
    return Conditioning(torch.randn(tokens, 32, generator=generator), torch.ones(16) * tokens if pooled else None)


def test_prompts_of_one_length_need_no_mask() -> None:
    context, mask, pooled = stack([words(77), words(77)])
    assert context.shape == (2, 77, 32)
    assert mask is None
    assert pooled is None


def test_a_shorter_prompt_is_filled_up_and_masked() -> None:
    context, mask, pooled = stack([words(77, pooled=True), words(154, pooled=True)])
    assert mask is not None
    assert pooled is not None
    assert mask.sum(dim=1).tolist() == [77, 154]
    assert not context[0, 77:].any()
    assert torch.equal(context[0, :77], words(77).context)
    assert pooled[:, 0].tolist() == [77, 154]


def test_what_a_prompt_is_filled_up_with_changes_nothing(model: Callable[[str], Model]) -> None:
    denoise = eager_denoiser(model("sd1"))
    latents, timesteps = torch.randn(1, 4, 16, 16), torch.tensor([500.0])

    def predicted(*rows: Conditioning, garbage: float = 0.0) -> torch.Tensor:
        context, mask, _ = stack(rows)
        if mask is not None:
            context = context.masked_fill(~mask[..., None], garbage)
        conditions = Conditions(context=context, mask=mask, pooled=None, time_ids=None, guidance=None)
        with torch.inference_mode():
            return denoise(latents.expand(len(rows), -1, -1, -1), timesteps.expand(len(rows)), conditions)[0]

    alone = predicted(words(77))
    # Attention with a mask takes another kernel: float32 sums in another order.
    assert torch.allclose(predicted(words(77), words(154)), alone, atol=1e-5)
    assert torch.allclose(predicted(words(77), words(154), garbage=100.0), alone, atol=1e-5)
    assert not torch.allclose(predicted(words(154)), alone, atol=1e-2)


def test_the_engine_sees_float32_whatever_the_network_computes_in(model: Callable[[str], Model]) -> None:
    assert next(model("sd1").unet.parameters()).dtype == torch.float32
    conditions = Conditions(context=words(77).context[None], mask=None, pooled=None, time_ids=None, guidance=None)
    output = eager_denoiser(model("sd1"))(torch.randn(1, 4, 16, 16), torch.tensor([1.0]), conditions)
    assert output.dtype == torch.float32


@pytest.mark.parametrize("width", [16, 17, 256])
def test_the_guidance_embedding_is_that_of_diffusers(width: int) -> None:
    from diffusers import LatentConsistencyModelPipeline

    w = torch.tensor([0.0, 0.5, 7.0, 12.0])
    theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, w, embedding_dim=width)
    # Angles go up to 12 000, where float32 has steps of 0.001.
    assert torch.allclose(guidance_embedding(w, width), theirs, atol=2e-3)
