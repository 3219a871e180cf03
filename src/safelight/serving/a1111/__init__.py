"""AUTOMATIC1111's API under /sdapi/v1 and its ControlNet extension: translation only.

routes payloads info          txt2img, img2img, progress; bodies and the answer's `info`
extras upscalers sd_upscale   enlarging
controlnet units              the extension's routes and arguments
lists options embeddings      what there is, and a caller's options
sittings                      what a caller has under way: `progress`, `interrupt`, `skip`
pictures                      base64 and URLs of pictures
"""
