"""Stored images.

encode         an image and its spec -> PNG, JPEG, WebP or AVIF with generation metadata
read_metadata  such a file, ours or another program's -> its metadata
store          bytes <-> files named by their sha256
"""
