"""From a draft to a spec: names become digests, hints and canvases are made, defaults are filled in.

resolve.py   the steps in order, on one screen; several drafts of one request at once
check.py     what can be found wrong with a draft by looking at files, before torch is imported
pins.py      the digests of effects, embeddings, replaced parts and refiners
plugins.py   plugins' values, checked by their own models, and the packages that they come from
hints.py     the hints that ControlNets read
canvas.py    the size of the picture, outpainting, and the mask of a background
drawable.py  what drawing a spec would raise, found without a network in memory
"""
