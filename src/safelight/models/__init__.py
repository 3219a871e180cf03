"""Checkpoints: what they are, how they load, and how words and pictures enter and leave them.

families.py     which kind of checkpoint it is           load.py        a checkpoint becomes a Model
recognise.py    what a safetensors file is               parts.py       its weights and tokenizers, folder or file
single_file.py  a file's configuration, from shapes      ldm_names.py   the original names and diffusers', as tables
export.py       a checkpoint as one file                 convert.py     a pickle becomes safetensors, locked away
prompts.py      (word:1.2), [word], BREAK: parsed        tokenize.py    chunks of token ids and weights
encode.py       chunks -> Conditioning, cached           latents.py     pictures <-> latents
preview.py      a quick look at latents                  mini/          the embedded model
"""
