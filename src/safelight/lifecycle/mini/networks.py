"""Create the three untrained networks of `mini` and its scheduler from the recipe."""

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from safelight.lifecycle.mini.mini import MiniRecipe


def new_autoencoder(recipe: MiniRecipe) -> AutoencoderKL:
    """A small AutoencoderKL; its latents are whitened, so its scaling factor is 1."""
    auto = recipe.autoencoder
    levels = len(auto.channels)
    network = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * levels,  # pyright: ignore[reportArgumentType]
        block_out_channels=auto.channels,  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        latent_channels=auto.latent_channels,
        norm_num_groups=auto.norm_groups,
        sample_size=recipe.artwork.size,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        force_upcast=False,
    )
    zero(network, "conv2")
    return network


def new_text_encoder(recipe: MiniRecipe) -> CLIPTextModel:
    text = recipe.text
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=text.vocabulary,
            hidden_size=text.width,
            intermediate_size=text.feed_forward,
            projection_dim=text.width,
            num_hidden_layers=text.layers,
            num_attention_heads=text.heads,
            max_position_embeddings=text.max_length,
            bos_token_id=text.vocabulary - 2,
            eos_token_id=text.vocabulary - 1,
            pad_token_id=text.vocabulary - 1,
        )
    )


def new_unet(recipe: MiniRecipe) -> UNet2DConditionModel:
    """Plain convolutions on the top level, cross-attention on the two below it, the pooled text everywhere."""
    denoiser = recipe.denoiser
    below = len(denoiser.channels) - 1
    network = UNet2DConditionModel(
        sample_size=recipe.artwork.size // 2 ** (len(recipe.autoencoder.channels) - 1),
        in_channels=recipe.autoencoder.latent_channels,
        out_channels=recipe.autoencoder.latent_channels,
        block_out_channels=denoiser.channels,
        layers_per_block=denoiser.layers,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * below),
        up_block_types=(*("CrossAttnUpBlock2D",) * below, "UpBlock2D"),
        cross_attention_dim=recipe.text.width,
        attention_head_dim=denoiser.heads,  # pyright: ignore[reportArgumentType]
        norm_num_groups=denoiser.norm_groups,
        time_embedding_dim=denoiser.time_width,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=denoiser.pooling_heads,
    )
    zero(network, "conv2", "proj_out", "conv_out")
    return network


def zero(network: nn.Module, *layers: str) -> None:
    """Zero the layers of these names: every residual block starts as the identity, which high learning rates need."""
    for name, layer in network.named_modules():
        if name.split(".")[-1] in layers:
            for param in layer.parameters():
                nn.init.zeros_(param)


def new_scheduler() -> DDIMScheduler:
    """v-prediction with zero terminal SNR (arXiv:2305.08891): sampling starts from pure noise, as in training."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        # Trailing spacing ignores the offset; the pipeline warns about any value but 1.
        steps_offset=1,
    )
