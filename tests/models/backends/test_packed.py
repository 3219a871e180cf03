import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from safelight.models.backends import packed
from safelight.models.backends.denoiser import Conditions
from safelight.models.backends.eager import eager_denoiser
from safelight.models.backends.packed import denoiser_for, packed_denoiser, packs
from safelight.models.networks.load import Model

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


def own(model: Model) -> Model:
    """A copy whose layers may be changed: other tests share the original."""
    return replace(model, unet=copy.deepcopy(model.unet))


def conditions(model: Model, rows: int) -> Conditions:
    generator = torch.Generator().manual_seed(rows)
    width = model.unet.config["cross_attention_dim"]
    pooled = time_ids = None
    if model.description.family.name == "sdxl":
        wide = model.unet.config["projection_class_embeddings_input_dim"]
        time_width = model.unet.config["addition_time_embed_dim"]
        pooled = torch.randn(rows, wide - 6 * time_width, generator=generator)
        time_ids = torch.zeros(rows, 6)
    context = torch.randn(rows, 77, width, generator=generator)
    return Conditions(context=context, mask=None, pooled=pooled, time_ids=time_ids, guidance=None)


@needs_onednn
@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_packed_weights_change_last_bits_at_most(model: Callable[[str], Model], kind: str) -> None:
    plain, fast = eager_denoiser(model(kind)), packed_denoiser(own(model(kind)))
    for rows, height, width in ((1, 16, 16), (5, 16, 16), (2, 24, 8), (1, 16, 16)):
        generator = torch.Generator().manual_seed(rows)
        latents = torch.randn(rows, 4, height, width, generator=generator)
        asked = latents, torch.full((rows,), 500.0), conditions(model(kind), rows)
        with torch.inference_mode():
            # Sums in another order: a few units in the last place of numbers of about 1, over some dozens of layers.
            torch.testing.assert_close(fast(*asked), plain(*asked), atol=1e-4, rtol=1e-4)


@needs_onednn
def test_the_same_call_twice_gives_the_same_bits(model: Callable[[str], Model]) -> None:
    fast = packed_denoiser(own(model("sd1")))
    asked = torch.randn(3, 4, 16, 16), torch.full((3,), 500.0), conditions(model("sd1"), 3)
    with torch.inference_mode():
        assert torch.equal(fast(*asked), fast(*asked))


def test_a_network_too_large_for_a_second_copy_is_left_alone(
    model: Callable[[str], Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    large = own(model("sd1"))
    monkeypatch.setattr(packed, "MAX_BYTES", 1000)
    assert not packs(large)
    denoiser_for(large)
    assert not any("forward" in vars(layer) for layer in large.unet.modules())
