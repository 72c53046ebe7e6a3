"""Convert a person's own picture to the model's input. The only module that uses Pillow."""

import contextlib
import importlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

from fmnist_tracking.errors import PictureError, first_line
from fmnist_tracking.files import open_untrusted
from fmnist_tracking.network import IMAGE_SIZE
from fmnist_tracking.redact import LONGEST_LINE, printable

# As a share of the range from black to white: a smaller difference still counts as background.
MARGIN_TOLERANCE = 0.05 * 255
# The kernel of ImageMagick's `-sharpen 1x1`: the negative of a Gaussian with sigma 1 and a radius
# of 1 pixel; the middle is twice the Gaussian's sum.
_GAUSSIAN = np.exp(-np.add.outer([1, 0, 1], [1, 0, 1]) / 2)
_MIDDLE = np.pad([[2 * _GAUSSIAN.sum()]], 1)
_KERNEL = np.where(_MIDDLE, _MIDDLE, -_GAUSSIAN)
SHARPEN = _KERNEL / _KERNEL.sum()
# Side of the patches at the corners: the picture's shorter side divided by this.
_CORNER_SHARE = 50
# The background is not plain if a larger share of the outermost pixels differs from it.
_PLAIN_SHARE = 0.25
# Formats of phones. Such a file begins with the length of a box, "ftyp", and one of these brands.
# Pillow reads AVIF from 11.3 on, HEIC only with pillow-heif.
_HEIC, _AVIF = "a HEIC", "an AVIF"
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"hevx", b"mif1", b"msf1"), _HEIC),
    **dict.fromkeys((b"heim", b"heis", b"hevm", b"hevs"), _HEIC),  # with several layers
    **dict.fromkeys((b"avif", b"avis"), _AVIF),
}
# Pillow passes these to another program, Ghostscript.
_NOT_OPENED = ("EPS",)
# Some decoders read a whole file at once; a photograph of 50 megapixels has 150 MB uncompressed.
_MOST_BYTES = 200_000_000
# So many take less than a gigabyte; half as many do where each takes more: wide numbers, opacity.
_MOST_PIXELS = 50_000_000
_BITS_8, _BITS_16 = 255, 65_535


@dataclass(frozen=True, kw_only=True)
class Note:
    """A reason to doubt an answer: a code for programs, and a sentence for people."""

    code: str
    text: str


NOT_TRIMMED = Note(
    code="already_28x28",
    text="already 28 by 28, so it was not trimmed: taken for an image of the data set's kind",
)
NOT_PLAIN = Note(
    code="background_not_plain",
    text="the background is not plain, or the thing reaches the picture's edges: the answer is "
    "often wrong",
)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A picture as the model's input."""

    pixels: NDArray[np.uint8]  # shape (height, width, channels)
    size: tuple[int, int]  # width and height of the upright picture before it was scaled
    steps: tuple[str, ...]  # what was done to it, for people; empty if it is used unchanged
    notes: tuple[Note, ...] = ()  # reasons to doubt a model's answer for it


def prepare(path: Path, shape: tuple[int, int, int] | None = None) -> Prepared:
    """Read a picture, and convert it to an image like those of Fashion-MNIST, or to a shape.

    It may have any size and colours, and any format that Pillow reads; of several frames, the first
    is used.

    Args:
        path: of the picture.
        shape: height, width and channels of the images of another data set, None for Fashion-MNIST.

    Raises:
        PictureError: there is no such file, it is not a picture, it is damaged or too large, or it
            shows nothing.
    """
    shown = printable(str(path), LONGEST_LINE)
    try:
        if path.is_dir():
            raise PictureError(f"{shown} is a folder. Name the pictures in it: {shown}/*.png")
        if path.exists() and not path.is_file():
            raise PictureError(f"{shown} is no file. Expected a picture.")
        file = open_untrusted(path, _MOST_BYTES)
    except FileNotFoundError:
        raise PictureError(f"There is no file {shown}.") from None
    except OSError as error:
        raise PictureError(f"Cannot read {shown}: {error.strerror}.") from None
    try:
        # Pillow warns of harmless oddities, which are ignored, and of pictures that are too large.
        with file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            Image.init()
            with contextlib.suppress(ImportError):
                importlib.import_module("pillow_heif").register_heif_opener()
            formats = [name for name in Image.ID if name not in _NOT_OPENED]
            with Image.open(file, formats=formats) as image:
                _require_not_too_large(image)
                image.load()
                return prepare_image(image) if shape is None else scale_image(image, shape)
    except UnidentifiedImageError:
        if (way_out := _phone_format(path)) is not None:
            raise PictureError(f"{shown} {way_out}") from None
        raise PictureError(
            f"{shown} is no picture of a format that can be read, such as PNG, JPEG, WebP, TIFF, "
            "GIF or BMP. Save it as one of those."
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise PictureError(f"{shown} {_too_large(_MOST_PIXELS)}") from None
    except PictureError as error:
        raise PictureError(f"{shown} {error}") from None
    except Exception as error:  # a decoder may raise anything when a file is damaged
        raise PictureError(f"{shown} is damaged or cut short ({first_line(error)}).") from None


def prepare_image(image: Image.Image) -> Prepared:
    """Convert a picture to an image like those of Fashion-MNIST.

    The steps are those of section 2 of H. Xiao, K. Rasul and R. Vollgraf, "Fashion-MNIST: a Novel
    Image Dataset for Benchmarking Machine Learning Algorithms" (2017), arXiv:1708.07747: trim the
    margins, scale the longer side to 28 pixels, sharpen, extend the shorter side, negate, convert
    to grey. There are five differences:

    - A picture of 28 by 28 pixels counts as converted already: it is not trimmed, scaled, sharpened
      or stretched. An image of the data set is used unchanged, to the last bit.
    - Only a picture whose background is lighter than the object is negated.
    - Pixels are averaged where the paper takes one of many, so that a photograph's grain and
      fine patterns do not turn into noise.
    - The contrast is stretched to black and white: each image of the data set has a 0, and a
      pixel of at least 254.
    - Transparent parts get a background: black for a light object, white for a dark one.

    Raises:
        PictureError: it shows nothing. The message has no subject, so that a file's name can
            precede it.
    """
    steps: list[str] = []
    notes: tuple[Note, ...]
    if getattr(image, "is_animated", False):
        steps.append("the first of its frames")
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        steps.append("turned upright")
        image = ImageOps.exif_transpose(image)
    grey = _grey(image, steps)
    background = float(np.median(_corners(grey)))
    if image.size == (IMAGE_SIZE, IMAGE_SIZE):
        if grey.min() == grey.max():
            raise PictureError(_NOTHING)
        if _is_light(grey, background):
            steps.append("negated")
            grey = _BITS_8 - grey
        pixels, notes = grey, (NOT_TRIMMED,)
    else:
        pixels = _made_like_the_data_set(grey, background, steps)
        notes = () if _is_plain(grey, background) else (NOT_PLAIN,)
    return Prepared(
        pixels=pixels[..., np.newaxis], size=image.size, steps=tuple(steps), notes=notes
    )


def scale_image(image: Image.Image, shape: tuple[int, int, int]) -> Prepared:
    """Bring a picture to a height, a width and a number of channels, 1 or 3.

    Nothing else is done to it: how the images of a data set were made, it does not say.
    """
    height, width, channels = shape
    steps: list[str] = []
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        steps.append("turned upright")
        image = ImageOps.exif_transpose(image)
    size = image.size
    if channels == 1 or image.mode.startswith(("I", "F")):
        image = Image.fromarray(_grey(image, steps))
    elif image.has_transparency_data:
        steps.append("put on white")
        white = Image.new("RGBA", size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    image = image.convert("L" if channels == 1 else "RGB")
    if size != (width, height):
        smaller = size[0] * size[1] > width * height
        steps.append(f"made {'smaller' if smaller else 'larger'}: {width} by {height}")
        way = Image.Resampling.BOX if smaller else Image.Resampling.BICUBIC
        image = image.resize((width, height), way)
    return Prepared(pixels=np.asarray(image).reshape(shape), size=size, steps=tuple(steps))


def _require_not_too_large(image: Image.Image) -> None:
    is_wide = image.mode.startswith(("I", "F")) or image.has_transparency_data
    most = _MOST_PIXELS // 2 if is_wide else _MOST_PIXELS
    if image.width * image.height > most:
        raise PictureError(_too_large(most))


def _too_large(most: int) -> str:
    return f"is too large: it has more than {most:,} pixels. Make it smaller first."


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode an image, uint8 of shape (height, width, 1 or 3), as a PNG file."""
    content = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(content, "PNG")
    return content.getvalue()


_NOTHING = (
    "shows nothing: all of it is about the same grey. Expected a thing on a plain background."
)


def _made_like_the_data_set(
    grey: NDArray[np.uint8], background: float, steps: list[str]
) -> NDArray[np.uint8]:
    thing = _trimmed(grey, background)
    if thing.shape != grey.shape:
        steps.append(f"trimmed to {_by(thing)}")
    else:
        steps.append("not trimmed: it fills the picture, or the background is not plain")
    light = _is_light(thing, background)
    scaled = _scaled(thing)
    if scaled.shape != thing.shape:
        smaller = scaled.size < thing.size
        steps.append(f"made {'smaller' if smaller else 'larger'}: {_by(scaled)}")
        if smaller:
            steps.append("sharpened")
            scaled = _sharpened(scaled)
    if light:
        steps.append("negated")
    over = np.clip(background - scaled if light else scaled - background, 0, None)
    if over.max() < 1:
        raise PictureError(_NOTHING)
    if over.max() != _BITS_8:
        steps.append("contrast stretched")
    height, width = over.shape
    # An odd pixel goes above or to the left, as in the data set.
    top, left = (IMAGE_SIZE - height + 1) // 2, (IMAGE_SIZE - width + 1) // 2
    if height != width:
        steps.append("centred")
    pixels = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    stretched = np.rint(over * (_BITS_8 / over.max()))
    pixels[top : top + height, left : left + width] = stretched.astype(np.uint8)
    return pixels


def _grey(image: Image.Image, steps: list[str]) -> NDArray[np.uint8]:
    """Convert to 256 grey levels, by the weights of ITU-R BT.601, on an opaque background."""
    if image.mode.startswith(("I", "F")):
        steps.append("brought to 8 bits")
        return _to_8_bits(np.asarray(image), _BITS_16 if image.mode.startswith("I;16") else None)
    if image.mode in ("1", "L") and not image.has_transparency_data:
        return np.asarray(image.convert("L"))
    if image.mode == "LAB":
        steps.append("made grey")
        return np.asarray(image.getchannel("L"))
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        alpha = np.asarray(colours.getchannel("A"))
    else:
        colours = image.convert("RGB")
        alpha = None
    red, green, blue, *_ = (np.asarray(colours.getchannel(c)) for c in colours.getbands())
    if not (np.array_equal(red, green) and np.array_equal(green, blue)):
        steps.append("made grey")
    grey = np.asarray(colours.convert("L"))
    if alpha is None or alpha.min() == _BITS_8:
        return grey
    if alpha.max() == 0:
        raise PictureError("shows nothing: all of it is transparent.")
    return _on_a_background(grey, alpha, steps)


def _on_a_background(
    grey: NDArray[np.uint8], alpha: NDArray[np.uint8], steps: list[str]
) -> NDArray[np.uint8]:
    if np.median(_corners(alpha)) > _BITS_8 / 2:  # there is a background, with holes in it
        background = round(float(np.median(_corners(grey))))
        steps.append("transparent parts filled")
    else:
        # The data set's photographs have a white background; a light object would vanish on it.
        dark = np.average(grey, weights=alpha) <= _BITS_8 / 2
        background = _BITS_8 if dark else 0
        steps.append(f"put on {'white' if dark else 'black'}")
    # At most 255 * 255 + 127, which fits into 16 bits.
    opacity = alpha.astype(np.uint16)
    mixed = grey * opacity + background * (_BITS_8 - opacity)
    return np.asarray((mixed + _BITS_8 // 2) // _BITS_8, np.uint8)


def _to_8_bits(values: NDArray[np.generic], top: float | None) -> NDArray[np.uint8]:
    """Scale wider numbers to 0..255; without a known maximum `top`, guess it from their range."""
    wide = np.nan_to_num(values.astype(np.float64), copy=False)
    low, high = wide.min(), wide.max()
    tops = (1, _BITS_8, _BITS_16) if values.dtype.kind == "f" else (_BITS_8, _BITS_16)
    if top is None and low >= 0:
        top = next((t for t in tops if high <= t), None)
    if top is None:
        wide, top = wide - low, max(high - low, 1.0)
    return np.asarray(np.rint(wide / top * _BITS_8), np.uint8)


def _corners(plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the pixels in the four corners.

    The paper uses the corners too. They are safer than the whole border: of the data set's 70,000
    images, 2 have a border that is mostly light, but none has light corners.
    """
    n = max(1, min(plane.shape) // _CORNER_SHARE)
    patches = (plane[:n, :n], plane[:n, -n:], plane[-n:, :n], plane[-n:, -n:])
    return np.concatenate([patch.ravel() for patch in patches])


def _is_light(thing: NDArray[np.uint8], background: float) -> bool:
    """Return whether the background is lighter than the object."""
    return float(thing.mean()) < background


def _is_plain(grey: NDArray[np.uint8], background: float) -> bool:
    """Return whether most of the picture's outermost pixels are background."""
    edges = np.concatenate([grey[0], grey[-1], grey[1:-1, 0], grey[1:-1, -1]])
    return float(_differs(edges, background).mean()) <= _PLAIN_SHARE


def _differs(grey: NDArray[np.uint8], background: float) -> NDArray[np.bool_]:
    return (grey > background + MARGIN_TOLERANCE) | (grey < background - MARGIN_TOLERANCE)


def _trimmed(grey: NDArray[np.uint8], background: float) -> NDArray[np.uint8]:
    """Remove the rows and columns at the edges that are all background."""
    differs = _differs(grey, background)
    rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
    if not len(rows):
        raise PictureError(_NOTHING)
    return grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _scaled(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Scale the picture so that its longer side is 28 pixels."""
    height, width = grey.shape
    scale = IMAGE_SIZE / max(height, width)
    if scale == 1:
        return grey
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    way = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(grey).resize(size, way))


def _sharpened(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    padded = np.pad(grey.astype(np.float64), 1, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, SHARPEN.shape)
    sharp = np.einsum("ijkl,kl->ij", windows, SHARPEN)
    return np.asarray(np.clip(np.rint(sharp), 0, _BITS_8), np.uint8)


def _by(plane: NDArray[np.uint8]) -> str:
    return f"{plane.shape[1]} by {plane.shape[0]}"


def _phone_format(path: Path) -> str | None:
    """Explain why a HEIC or AVIF picture cannot be read, whatever its name.

    Returns:
        A sentence without its subject, None if the file's content is neither.
    """
    try:
        with path.open("rb") as file:
            start = file.read(12)
    except OSError:
        return None
    kind = _BRANDS.get(start[8:]) if start[4:8] == b"ftyp" else None
    if kind is None:
        return None
    # These are Pillow's names; only pillow-heif registers HEIF.
    if "HEIF" in Image.ID if kind == _HEIC else features.check("avif"):
        return f"is {kind} picture that is damaged or cut short."
    needed = "'fmnist-tracking[heic]'" if kind == _HEIC else "Pillow 11.3 or newer"
    return (
        f"is {kind} picture, which cannot be read here. Install {needed}, or save the picture as "
        "JPEG or PNG."
    )
