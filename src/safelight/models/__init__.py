"""From a file's name to a network that can be called. Rooms import from those below:

    backends      ways to run the network: eager, packed, in tiles, transformers
    adapters      LoRA, ControlNet, T2I-Adapter, IP-Adapter: from a file to what is ready for one model
    vision        networks that look at pictures or enlarge them
    networks      loaded networks: text encoders, autoencoder, memory, placement, export
    registry      versions that never change, aliases, licences, downloads
    hooks         what is changed inside a network, row by row of a call
    checkpoints   which files there are and what they are: families, names, digests, the hub
    weights       files of tensors, read without a network, and the names that tensors go by

`networks` and `registry` do not know each other; nor do `hooks` and `checkpoints`. `mini/` holds the embedded model's
files, and no code.
"""
