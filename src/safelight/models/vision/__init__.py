"""Networks that analyse or upscale images.

similarity clip_similarity   similarity of images and prompts
depth preprocessors          control images for ControlNets
face                         face embeddings for IP-Adapters
esrgan upscalers enlarger    upscaling; an upscaler of a plugin
"""
