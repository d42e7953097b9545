"""Inputs that have the shape of pictures, as PNGs inside a page."""

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SMALLEST, _LARGEST = 4, 4096  # pixels on a side, of what is a picture
_SHOWN = 112  # pixels on the longer side; a larger one is made smaller
_CHANNELS = (1, 3)


def are_pictures(inputs: NDArray[Any]) -> bool:
    """Whether samples are (channels, height, width), (height, width, channels) or (height, width) of numbers."""
    if inputs.dtype.kind not in "biuf" or inputs.ndim not in (3, 4):
        return False
    sides = inputs.shape[1:]
    if inputs.ndim == 4 and sides[0] in _CHANNELS:
        sides = sides[1:]
    elif inputs.ndim == 4:
        sides = sides[:2] if sides[2] in _CHANNELS else (0,)
    return all(_SMALLEST <= side <= _LARGEST for side in sides)


def as_data_uris(inputs: NDArray[Any]) -> list[str]:
    """Each as `data:image/png;base64,...`. Numbers beyond 0 to 1 are stretched by channel, alike for all samples."""
    pictures = _channels_last(inputs)
    bytes_ = pictures if pictures.dtype == np.uint8 else _as_bytes(pictures.astype(np.float64))
    return [_png(_smaller(each)) for each in bytes_]


def _channels_last(inputs: NDArray[Any]) -> NDArray[Any]:
    if inputs.ndim == 3:
        return inputs[..., None]
    return np.moveaxis(inputs, 1, -1) if inputs.shape[1] in _CHANNELS else inputs


def _as_bytes(pictures: NDArray[np.float64]) -> NDArray[np.uint8]:
    pictures = np.nan_to_num(pictures, posinf=0.0, neginf=0.0)
    low, high = pictures.min(axis=(0, 1, 2)), pictures.max(axis=(0, 1, 2))
    if low.min() < 0 or high.max() > 1:
        pictures = (pictures - low) / np.where(high > low, high - low, 1)
    return np.asarray((pictures * 255).round(), dtype=np.uint8)


def _smaller(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Means over squares, so that the longer side has at most _SHOWN pixels."""
    by = -(-max(picture.shape[:2]) // _SHOWN)
    if by == 1:
        return picture
    height, width = (max(side // by, 1) for side in picture.shape[:2])
    cut = picture[: height * by, : width * by]
    blocks = cut.reshape(height, min(by, cut.shape[0]), width, min(by, cut.shape[1]), -1)
    return np.asarray(blocks.mean(axis=(1, 3)).round(), dtype=np.uint8)


def _png(picture: NDArray[np.uint8]) -> str:
    from matplotlib.image import imsave

    if picture.shape[2] == 1:
        picture = np.repeat(picture, 3, axis=2)
    buffer = io.BytesIO()
    imsave(buffer, picture, format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
