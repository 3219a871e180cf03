import torch

from safelight.diffusion.guidance import blurred, compose_regions, degrade, guide, rescale
from safelight.diffusion.noise import seeded

cond, uncond = (torch.randn(3, 4, 5, 6, generator=seeded(seed)) for seed in (0, 1))


def test_scale_is_per_picture() -> None:
    guided = guide(cond, uncond, torch.tensor([0.0, 1.0, 7.5]))
    assert torch.equal(guided[0], uncond[0])
    torch.testing.assert_close(guided[1], cond[1])
    torch.testing.assert_close(guided[2], uncond[2] + 7.5 * (cond[2] - uncond[2]))


def test_rescale_is_diffusers_rescale_per_picture() -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    guided = guide(cond, uncond, torch.full((3,), 7.5))
    ours = rescale(guided, cond, torch.tensor([0.0, 0.7, 1.0]))
    assert torch.equal(ours[0], guided[0])
    for i, phi in [(1, 0.7), (2, 1.0)]:
        theirs = rescale_noise_cfg(guided[i : i + 1], cond[i : i + 1], guidance_rescale=phi)
        torch.testing.assert_close(ours[i : i + 1], theirs)
    torch.testing.assert_close(ours[2].std(), cond[2].std())


def test_the_blur_is_diffusers_blur() -> None:
    from diffusers.pipelines.deprecated.stable_diffusion_sag.pipeline_stable_diffusion_sag import gaussian_blur_2d

    torch.testing.assert_close(blurred(cond[0]), gaussian_blur_2d(cond[:1], kernel_size=9, sigma=1.0)[0])


def test_only_the_clean_estimate_is_blurred_and_only_inside_the_mask() -> None:
    mask = torch.zeros(1, 5, 6)
    mask[:, 2:] = 1
    seen = torch.cat([cond[0, :, :2], blurred(cond[0])[:, 2:]], dim=1)
    for signal, sigma in [(1.0, 3.0), (0.6, 0.8), (0.0, 1.0)]:
        latent, expected = (signal * clean + sigma * uncond[0] for clean in (cond[0], seen))
        torch.testing.assert_close(degrade(latent, cond[0], mask, signal), expected)


def test_regions_take_their_shares_and_the_prompt_has_what_is_left() -> None:
    shares = torch.zeros(2, 1, 5, 6)
    shares[0, :, :, :2], shares[1, :, :, 1:3] = 0.75, 0.25
    mixed = compose_regions(cond[0], cond[1:], shares)
    assert torch.equal(mixed[..., 3:], cond[0, ..., 3:])
    torch.testing.assert_close(mixed[..., 0], 0.25 * cond[0, ..., 0] + 0.75 * cond[1, ..., 0])
    torch.testing.assert_close(mixed[..., 1], 0.75 * cond[1, ..., 1] + 0.25 * cond[2, ..., 1])
    torch.testing.assert_close(mixed[..., 2], 0.75 * cond[0, ..., 2] + 0.25 * cond[2, ..., 2])
