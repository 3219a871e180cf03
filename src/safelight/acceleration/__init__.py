"""Denoiser back ends behind one seam: (latents, timesteps, conditions) -> what the network predicts.

denoiser.py   the seam, and the conditions of a batch as tensors
eager.py      plain PyTorch
mmdit.py      the same, for networks that are transformers
"""
