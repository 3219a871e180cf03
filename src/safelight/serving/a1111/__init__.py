"""AUTOMATIC1111's API under /sdapi/v1 and its ControlNet extension: translation only.

routes info answers           txt2img, img2img, progress; the answers and their `info`
body generation_body txt2img img2img   the request bodies, and their fields as those of a draft
scripts                       extensions, and the built-in panels of the web page
extras upscalers sd_upscale   upscaling
controlnet unit control_fields    the ControlNet extension's routes and arguments
lists options embeddings      lists of what is available, and a caller's options
progress                      a caller's active requests: `progress`, `interrupt`, `skip`
pictures                      init pictures and masks of img2img
"""
