"""Image processing without networks: Pillow in, Pillow out.

open_image   untrusted bytes -> a plain RGB or RGBA image, or InvalidImage
bare_png     a PNG's bytes without metadata
image_pool   threads for image work beside an event loop, with a memory budget and fair scheduling
canvas       fit to a size, extend for outpainting, crop and paste back
outlines     edges and scribbles, as hints for a ControlNet
subject      separate the subject from the background, by transparency or an even background colour
grid         several images side by side
xmp          XMP packets, written and read
"""
