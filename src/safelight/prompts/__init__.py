"""Text in, text out: what the words of a prompt mean before a model reads them. Imports no torch.

prompts           (word:1.2), [word], BREAK -> words and their weights
prompt_schedule   [a:b:0.5], [a|b], AND -> who reads what at which step
lora_tags         <lora:name:0.8> taken out of the words
several           one draft becomes several: numbers of pictures and choices
templates         {red|green} choices
wildcards         __colour__ lists, one file each
"""
