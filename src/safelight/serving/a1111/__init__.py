"""AUTOMATIC1111's API under /sdapi/v1 and its ControlNet extension: translation only.

routes payloads info          txt2img, img2img, progress; bodies and the answer's `info`
loose scripts                 what bodies have in common; extensions, and the page's own parts
extras upscalers sd_upscale   enlarging
controlnet unit units         the extension's routes and arguments
lists options embeddings      what there is, and a caller's options
sittings                      what a caller has under way: `progress`, `interrupt`, `skip`
pictures                      base64 and URLs of pictures
"""
