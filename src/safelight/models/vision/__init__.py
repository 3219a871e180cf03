"""Networks that analyse or upscale images.

similarity clip_similarity   similarity of images and prompts
depth preprocessors          control images for ControlNets
esrgan upscalers enlarger    upscaling; an upscaler of a plugin
"""
