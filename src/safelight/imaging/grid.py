"""Images side by side."""

from PIL import Image


def paste(rows: list[list[Image.Image]]) -> Image.Image:
    """Paste images of equal size into a grid of rows."""
    width, height = rows[0][0].size
    sheet = Image.new("RGB", (width * len(rows[0]), height * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * width, y * height))
    return sheet
