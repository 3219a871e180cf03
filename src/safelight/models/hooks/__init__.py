"""What is changed inside a network, row by row of one call; weights are never touched.

adapters          LoRAs, as terms added to a layer's output (lora_terms); lora_names says which layer is meant
picture_prompts   IP-Adapters: cross attention to pictures
freeu             skip connections weighed against the backbone
perturbed         perturbed-attention guidance
attention_mask          the attention map that self-attention guidance reads
"""
