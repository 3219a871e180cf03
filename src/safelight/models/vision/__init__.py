"""Networks that look at pictures or enlarge them.

similarity clip_similarity   how alike pictures and prompts are
depth preprocessors          hints for a ControlNet
esrgan upscalers             larger pictures
"""
