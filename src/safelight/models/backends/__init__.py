"""Ways to run a denoiser, behind one seam: (latents, timesteps, conditions) -> what the network predicts.

denoiser   the seam, and the conditions of a batch as tensors
eager      plain PyTorch
packed     weights rearranged once for the CPU's operators
tiled      a picture larger than the model draws, in squares
mmdit      networks that are transformers (Stable Diffusion 3, Flux)
budget     how many pictures pay off in one call, as measured
"""
