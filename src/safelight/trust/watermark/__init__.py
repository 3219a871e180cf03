"""An invisible mark in the pixels that names a picture's key and asset: spread spectrum, without trained weights.

keys        the secrets of a deployment, their rotation, and the asset id of a spec
payload     64 bits -> 264 coded bits with a checksum, and back from soft values
pattern     where a key's mark lies among the spatial frequencies: a mark -> waves, a picture -> spectrum
pixels      a Pillow image or an array -> colour, alpha, brightness; and back in the same type
perception  how much a place hides, and how alike two pictures look
reading     a picture -> residual -> spectrum -> a decoded reading at one place
embed       a picture, a key and an asset id -> a marked picture and what became of it
detect      a picture and all keys -> whose mark it carries, under crops, resizing and mirrors
"""
