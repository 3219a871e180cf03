import torch

from safelight.diffusion.guidance import blurred, degrade, guide, rescale
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

    torch.testing.assert_close(blurred(cond), gaussian_blur_2d(cond, kernel_size=9, sigma=1.0))


def test_only_the_clean_estimate_is_blurred_and_only_inside_the_mask() -> None:
    signal, sigma, masks = torch.tensor([1.0, 0.6, 0.0]), torch.tensor([3.0, 0.8, 1.0]), torch.zeros(3, 1, 5, 6)
    masks[:, :, 2:] = 1
    latents = signal.view(-1, 1, 1, 1) * cond + sigma.view(-1, 1, 1, 1) * uncond
    seen = torch.cat([cond[:, :, :2], blurred(cond)[:, :, 2:]], dim=2)
    expected = signal.view(-1, 1, 1, 1) * seen + sigma.view(-1, 1, 1, 1) * uncond
    torch.testing.assert_close(degrade(latents, cond, masks, signal), expected)
