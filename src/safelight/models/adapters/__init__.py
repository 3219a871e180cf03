"""Adapters: from a file to what is ready for one model.

lora lora_arithmetic lora_hash lora_merge lora_shelf   kohya, peft, LyCORIS, DoRA
control control_file control_shelf                     ControlNet and T2I-Adapter; the shelf keeps IP-Adapters too
ip_adapter ip_file                                     IP-Adapter and its image encoder
"""
