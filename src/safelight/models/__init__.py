"""Checkpoints: what they are, how they load, and how words and pictures enter and leave them.

families.py     which kind of checkpoint it is           load.py        a checkpoint becomes a Model
recognise.py    what a safetensors file is               parts.py       its weights and tokenizers, folder or file
single_file.py  a file's configuration, from shapes      ldm_names.py   the original names and diffusers', as tables
export.py       a checkpoint as one file                 convert.py     a pickle becomes safetensors, locked away
prompts.py      (word:1.2), [word], BREAK: parsed        tokenize.py    chunks of token ids and weights
prompt_schedule.py        [a:b:0.5], [a|b], AND          textual_inversion.py  embeddings by name
several.py, templates.py, wildcards.py                   one draft becomes several: seeds and choices
encode.py       chunks -> Conditioning, cached           latents.py     pictures <-> latents
lora.py         a LoRA file made ready for a model       adapters.py    LoRAs per row of a call
preview.py      a quick look at latents                  mini/          the embedded model
"""
