"""Whatever steers a picture beside its prompt, from a file to the rows of a network call.

effect effects                                  the one shape of all kinds, the table of kinds, and plugins'
lora_effect lora lora_arithmetic lora_hash lora_merge   LoRA: kohya, peft, LyCORIS, DoRA
control_effect control control_file             ControlNet and T2I-Adapter
ip_effect ip_adapter ip_file                    IP-Adapter and its image encoder
freeu pag sag                                   FreeU, perturbed-attention and self-attention guidance, a file each
"""
