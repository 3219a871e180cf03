"""Pictures at rest.

encode         a picture and its spec -> PNG, JPEG or WebP that says how it was made
read_metadata  any such file, ours or another program's -> what it says
store          bytes <-> files named by their sha256
"""
