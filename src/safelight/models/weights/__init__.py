"""Files of tensors, read without a network, and the tensor names of each dialect.

safetensors_file   the only supported format; tensor_file reads and writes it one tensor at a time
identify           the kind of a file, from its header alone
single_file configurations   a checkpoint in one file: where its parts are, and their configurations from the shapes
ldm_names ldm_weights mmdit_names control_names control_lora scaled   the original names and layouts, as tables
lora_file          a LoRA in any dialect
convert unpickle   a pickle -> safetensors, in a sandboxed process
"""
