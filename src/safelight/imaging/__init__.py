"""Pillow in, Pillow out: pictures as people have them, with no idea of networks.

open_image   a stranger's bytes -> a plain RGB or RGBA picture, or InvalidImage
bare_png     a PNG's own bytes with nothing in them but the picture
workroom     where pictures are worked on beside an event loop: few threads, a memory budget, fair turns
canvas       fit to a size, grow for outpainting, cut out and paste back
outlines     edges and scribbles, as hints for a ControlNet
subject      what is in front, by transparency or an even background
grid         many pictures as one
"""
