"""Files of tensors, read without a network, and what their tensors are called in each dialect.

safetensors_file   the only format that is read; tensor_file reads and writes it a tensor at a time
recognise          what a file is, from its header alone
single_file        a checkpoint in one file: where its parts are; configurations from the shapes
ldm_names ldm_weights mmdit_names control_names control_lora scaled   the original names and layouts, as tables
lora_file          a LoRA in whichever dialect it is written
convert unpickle   a pickle becomes safetensors, in a process that is locked down
"""
