"""What a picture says of its origin, and how it can be asked.

watermark/   an invisible mark in the pixels, and its detector
"""
