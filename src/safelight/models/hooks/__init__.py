"""What is changed inside a network, row by row of one call; weights are never touched.

hook              the one shape of all kinds, and all effects of a call at once
adapters          LoRAs, as terms added to a layer's output (lora_terms); lora_names maps names to layers
picture_prompts   IP-Adapters: cross attention to pictures

Hooks of effects that need no file are beside their effect, in `models/adapters/`.
"""
