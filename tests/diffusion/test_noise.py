import torch

from safelight.diffusion.noise import draw, seeded


def test_noise_is_what_a_diffusers_pipeline_draws() -> None:
    from diffusers.utils.torch_utils import randn_tensor

    ours, theirs = seeded(7), seeded(7)
    for _ in range(2):
        expected = randn_tensor((1, 4, 8, 8), generator=theirs, device=torch.device("cpu"), dtype=torch.float32)
        assert torch.equal(draw(ours, (4, 8, 8)), expected[0])


def test_noise_is_float32_whatever_the_default() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        noise = draw(seeded(7), (4, 8, 8))
    finally:
        torch.set_default_dtype(torch.float32)
    assert noise.dtype == torch.float32
    assert torch.equal(noise, draw(seeded(7), (4, 8, 8)))
