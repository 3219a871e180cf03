"""The grammar of prompts: text in, text out, before any text encoder. Imports no torch.

weights           (word:1.2), [word], BREAK -> texts and their weights
prompt_schedule   [a:b:0.5], [a|b], AND -> the prompts of each step
lora_tags         <lora:name:0.8> extracted from a prompt
expand            one draft -> several: consecutive seeds, and choices in prompts
templates         {red|green} choices
wildcards         __colour__ lists, one file each
"""
