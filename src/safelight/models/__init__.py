"""Checkpoints: what they are, how they load, and how words and pictures enter and leave them.

families.py  which kind of checkpoint a folder holds      load.py      a folder becomes a Model
prompts.py   (word:1.2), [word], BREAK: parsed            tokenize.py  chunks of token ids and weights
prompt_schedule.py    [a:b:0.5], [a|b], AND               textual_inversion.py  embeddings by name
several.py, templates.py, wildcards.py  one draft becomes several: seeds and choices
encode.py    chunks -> Conditioning, batched and cached   latents.py   pictures <-> latents
preview.py   a quick look at latents                      mini/        the embedded model
lora.py      a LoRA file made ready for a model           adapters.py  LoRAs per row of a call
"""
