"""Brings camera frames to the model's square without distorting them."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from preflight.config.schema import IMAGE_SIZE


def resize_with_pad(image: UInt8[np.ndarray, "h w 3"], size: int = IMAGE_SIZE) -> UInt8[np.ndarray, "size size 3"]:
    """Scales an image to fit a square, the aspect kept, and centres it on black.

    The scaling is PIL's antialiased bilinear filter and sizes round down, so that a policy sees in training the pixels
    that openpi's client (`image_tools.resize_with_pad`) sends it afterwards.

    Args:
        image: Any height and width.
        size: Side of the square in pixels.

    Returns:
        The square; the image itself where it has that size already.
    """
    height, width = image.shape[:2]
    if height == width == size:
        return image
    scale = max(height, width) / size
    new_height, new_width = max(1, int(height / scale)), max(1, int(width / scale))
    scaled = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR)
    top, left = (size - new_height) // 2, (size - new_width) // 2
    square = np.zeros((size, size, 3), dtype=np.uint8)
    square[top : top + new_height, left : left + new_width] = np.asarray(scaled)
    return square
