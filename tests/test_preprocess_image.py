import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from fmnist_tracking.data import Dataset
from fmnist_tracking.errors import PictureError
from fmnist_tracking.preprocess_image import (
    NOT_PLAIN,
    NOT_TRIMMED,
    SHARPEN,
    png,
    prepare,
    prepare_image,
)
from processes import memory_taken

WHITE, BLACK = 255, 0
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16")


def thing(
    size: tuple[int, int] = (200, 300), background: int = WHITE, colour: int = BLACK
) -> Image.Image:
    """A plain upright rectangle, 60 by 120, off the centre of a plain picture."""
    image = Image.new("L", size, background)
    image.paste(colour, (20, 30, 80, 150))
    return image


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    return prepare_image(image).pixels[..., 0]


# What `thing` is to become: 14 by 28 pixels, in the middle.
EXPECTED = np.zeros((28, 28), np.uint8)
EXPECTED[:, 7:21] = 255


def to_16_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image).astype(np.uint16) * 257)


SAME: dict[str, tuple[str, Callable[[Image.Image], Image.Image]]] = {
    "grey PNG": ("PNG", lambda image: image),
    "colour PNG": ("PNG", lambda image: image.convert("RGB")),
    "opaque PNG": ("PNG", lambda image: image.convert("RGBA")),
    "palette PNG": ("PNG", lambda image: image.convert("P")),
    "GIF": ("GIF", lambda image: image),
    "16-bit PNG": ("PNG", to_16_bits),
    "16-bit TIFF": ("TIFF", to_16_bits),
    "32-bit TIFF": ("TIFF", lambda image: image.convert("F")),
    "BMP": ("BMP", lambda image: image),
    "negative": ("PNG", lambda image: image.point(lambda value: 255 - value)),
}


@pytest.mark.parametrize("kind", SAME)
def test_an_image_of_the_data_set_is_used_as_it_is(
    kind: str, dataset: Dataset, tmp_path: Path
) -> None:
    file_format, change = SAME[kind]
    path = tmp_path / "image"
    for pixels in dataset.test_images[:20]:
        change(Image.fromarray(pixels)).save(path, file_format)
        prepared = prepare(path)
        np.testing.assert_array_equal(prepared.pixels[..., 0], pixels)
        if kind == "grey PNG":
            assert prepared.steps == ()


def test_no_image_of_the_data_set_is_taken_for_a_negative(dataset: Dataset) -> None:
    for pixels in dataset.test_images:
        assert prepare_image(Image.fromarray(pixels)).steps == ()
        assert prepare_image(Image.fromarray(255 - pixels)).steps == ("negated",)


def test_what_is_written_is_what_the_model_saw(dataset: Dataset, tmp_path: Path) -> None:
    pixels = dataset.test_images[0][..., np.newaxis]
    (tmp_path / "seen.png").write_bytes(png(pixels))
    np.testing.assert_array_equal(prepare(tmp_path / "seen.png").pixels, pixels)


@pytest.mark.parametrize(
    ("background", "colour"),
    [(WHITE, BLACK), (BLACK, WHITE), (240, 20), (20, 240), (128, 60), (128, 200), (210, 255)],
)
def test_a_thing_is_trimmed_scaled_centred_and_light_on_black(background: int, colour: int) -> None:
    np.testing.assert_array_equal(pixels_of(thing((200, 300), background, colour)), EXPECTED)


def test_a_small_picture_is_made_larger() -> None:
    image = Image.new("L", (9, 9), WHITE)
    image.paste(BLACK, (2, 1, 5, 7))
    prepared = prepare_image(image)
    np.testing.assert_array_equal(prepared.pixels[..., 0], EXPECTED)
    assert prepared.steps == ("trimmed to 3 by 6", "made larger: 14 by 28", "negated", "centred")


def test_what_was_done_is_told() -> None:
    image = Image.new("RGB", (200, 300), (250, 240, 230))
    image.paste((20, 30, 120), (20, 30, 80, 150))
    prepared = prepare_image(image)
    assert prepared.size == (200, 300)
    assert prepared.steps == (
        "made grey",
        "trimmed to 60 by 120",
        "made smaller: 14 by 28",
        "sharpened",
        "negated",
        "contrast stretched",
        "centred",
    )


def test_margins_within_5_percent_of_the_corners_are_trimmed() -> None:
    noisy = np.asarray(thing()).astype(np.int16)
    noisy[noisy == WHITE] = 243 - np.random.default_rng(0).integers(0, 12, (noisy == WHITE).sum())
    prepared = prepare_image(Image.fromarray(noisy.astype(np.uint8)))
    assert prepared.steps[0] == "trimmed to 60 by 120"


def test_sharpening_by_hand() -> None:
    # e^-1/2 = 0.6065 beside the middle, e^-1 = 0.3679 at the corners; 4.8976 with the middle's 1.
    side, corner, middle = -0.6065, -0.3679, 2 * 4.8976
    total = 4 * side + 4 * corner + middle
    expected = np.array([[corner, side, corner], [side, middle, side], [corner, side, corner]])
    np.testing.assert_allclose(SHARPEN, expected / total, atol=1e-4)


@pytest.mark.parametrize(("colour", "ground"), [(30, "white"), (250, "black")])
def test_a_cut_out_is_put_on_what_it_stands_out_from(colour: int, ground: str) -> None:
    image = Image.new("RGBA", (200, 300), (77, 77, 77, 0))
    image.paste((colour, colour, colour, 255), (20, 30, 80, 150))
    assert prepare_image(image).steps[0] == f"put on {ground}"
    np.testing.assert_array_equal(pixels_of(image), EXPECTED)


def test_holes_in_a_picture_are_filled_with_its_background() -> None:
    image = thing((200, 300), 200, 20).convert("RGBA")
    image.paste((0, 0, 0, 0), (100, 200, 150, 250))
    assert prepare_image(image).steps[0] == "transparent parts filled"
    np.testing.assert_array_equal(pixels_of(image), EXPECTED)


def test_a_transparent_colour_of_a_palette() -> None:
    image = thing().convert("P")
    image.info["transparency"] = 255
    content = io.BytesIO()
    image.save(content, "PNG")
    np.testing.assert_array_equal(pixels_of(Image.open(content)), EXPECTED)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_as_its_exif_says(orientation: int, tmp_path: Path) -> None:
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = thing()
    upright.paste(128, (20, 30, 50, 60))  # so that no two orientations look alike
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(turn[orientation]) if orientation > 1 else upright
    stored.save(tmp_path / "a.png", exif=exif)
    prepared = prepare(tmp_path / "a.png")
    np.testing.assert_array_equal(prepared.pixels[..., 0], pixels_of(upright))
    assert prepared.size == (200, 300)
    assert ("turned upright" in prepared.steps) == (orientation > 1)


def test_a_picture_of_a_hundred_thousand_frames_is_soon_read(tmp_path: Path) -> None:
    """A TIFF whose frames all have the same pixels; to count them would take minutes."""
    count, at = 100_000, 8 + 64
    tags = ((256, 8), (257, 8), (258, 8), (259, 1), (262, 1), (273, 8), (278, 8), (279, 64))
    size = 2 + 12 * len(tags) + 4
    pixels = bytes(range(0, 256, 4))
    frames = b"".join(
        struct.pack("<H", len(tags))
        + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        + struct.pack("<I", at + size * (number + 1) if number + 1 < count else 0)
        for number in range(count)
    )
    path = tmp_path / "many.tif"
    path.write_bytes(struct.pack("<2sHI", b"II", 42, at) + pixels + frames)
    assert prepare(path).steps[0] == "the first of its frames"


def test_the_first_of_several_frames(tmp_path: Path) -> None:
    thing().save(tmp_path / "a.gif", save_all=True, append_images=[thing(background=BLACK)])
    prepared = prepare(tmp_path / "a.gif")
    assert prepared.steps[0] == "the first of its frames"
    np.testing.assert_array_equal(prepared.pixels[..., 0], EXPECTED)


@st.composite
def pictures(draw: st.DrawFn) -> Image.Image:
    """Any picture: noise of any mode and size, in part of one colour."""
    mode = draw(st.sampled_from(MODES))
    size = (draw(st.integers(1, 70)), draw(st.integers(1, 70)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    wide = {"I": "<i4", "F": "<f4", "I;16": "<u2"}
    spread = draw(st.sampled_from([0, 1, 20, 255]))
    count = size[0] * size[1] * len(Image.new(mode, (1, 1)).getbands())
    noise = random.integers(0, spread + 1, count)
    noise[random.random(count) < draw(st.sampled_from([0, 0.5, 1]))] = draw(st.integers(0, 255))
    if mode == "1":
        return Image.fromarray((noise % 2 == 1).reshape(size[::-1]))
    if mode == "P":
        return Image.frombytes("L", size, noise.astype(np.uint8).tobytes()).convert("P")
    if mode in wide:
        scaled = noise * draw(st.sampled_from([1, 257, -1000])) % 2**16
        return Image.frombytes(mode, size, scaled.astype(wide[mode]).tobytes())
    return Image.frombytes(mode, size, noise.astype(np.uint8).tobytes())


@given(pictures())
@settings(max_examples=400, deadline=None)
def test_any_picture_becomes_one_of_the_data_set_s_kind(image: Image.Image) -> None:
    try:
        prepared = prepare_image(image)
    except PictureError as error:
        assert str(error).startswith("shows nothing")
        return
    assert prepared.pixels.shape == (28, 28, 1)
    assert prepared.pixels.dtype == np.uint8
    assert prepared.size == image.size
    if image.size == (28, 28):
        assert prepared.pixels.min() < prepared.pixels.max()
    else:
        assert prepared.pixels.max() == 255


def encoded(file_format: str) -> bytes:
    content = io.BytesIO()
    thing((40, 60)).convert("RGB").save(content, file_format)
    return content.getvalue()


FILES = [encoded(name) for name in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM")]


@given(
    st.sampled_from(FILES),
    st.integers(0, 400),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
)
@example(FILES[0], 0, [])
@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_damaged_file_is_told_of_in_one_line(
    tmp_path: Path, content: bytes, cut: int, changes: list[tuple[int, int]]
) -> None:
    damaged = bytearray(content[: len(content) - cut] if cut < len(content) else b"")
    for place, value in changes:
        if place < len(damaged):
            damaged[place] = value
    path = tmp_path / "damaged"
    path.write_bytes(damaged)
    try:
        assert prepare(path).pixels.shape == (28, 28, 1)
    except PictureError as error:
        assert str(error).startswith(str(path))
        assert "\n" not in str(error)


def huge(tmp_path: Path, side: int) -> Path:
    """The beginning of a PNG of that many pixels a side, which is all that is read of it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    path = tmp_path / "huge.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
            for chunk in (header, data, b"IEND")
        )
    )
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "none.png", "There is no file"),
        (lambda folder: folder, "is a folder. Name the pictures in it"),
        (lambda folder: Path("/dev/null"), "is no file"),
        (lambda folder: folder / ("x" * 300), "Cannot read"),
        (lambda folder: folder / "two\nlines", r"two\\nlines"),
        (lambda folder: written(folder, b""), "is no picture of a format that can be read"),
        (lambda folder: written(folder, b"hello"), "is no picture of a format that can be read"),
        (
            lambda folder: written(folder, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
            "is no picture of a format that can be read",
        ),
        (lambda folder: written(folder, encoded("JPEG")[:300]), "is damaged or cut short"),
        (lambda folder: huge(folder, 8_000), "is too large: it has more than 50,000,000 pixels"),
        (lambda folder: huge(folder, 40_000), "is too large: it has more than 50,000,000 pixels"),
        (lambda folder: sparse(folder), "it has 1,000,000,000,000 bytes, expected 200,000,000"),
        (lambda folder: saved(folder, Image.new("L", (50, 50), 77)), "shows nothing"),
        (lambda folder: saved(folder, Image.new("L", (28, 28), 77)), "shows nothing"),
        (
            lambda folder: saved(folder, Image.new("RGBA", (50, 50))),
            "shows nothing: all of it is transparent",
        ),
    ],
)
def test_what_cannot_be_used_is_told_of_in_one_line(
    make: Callable[[Path], Path], words: str, tmp_path: Path
) -> None:
    with pytest.raises(PictureError, match=words) as caught:
        prepare(make(tmp_path))
    assert "\n" not in str(caught.value)


def written(folder: Path, content: bytes) -> Path:
    path = folder / "file"
    path.write_bytes(content)
    return path


def sparse(folder: Path) -> Path:
    path = written(folder, encoded("WEBP"))
    os.truncate(path, 10**12)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "side"), [("RGB", 7_000), ("RGBA", 5_000), ("I;16", 5_000)])
def test_the_largest_picture_takes_less_than_a_gigabyte(
    tmp_path: Path, mode: str, side: int
) -> None:
    colour = 50_000 if mode == "I;16" else (200, 100, 50, 255)[: len(mode)]
    picture = Image.new(mode, (side, side))
    picture.paste(colour, (9, 9, side // 2, side // 2))
    path = saved(tmp_path, picture)
    said, megabytes = memory_taken(
        "from pathlib import Path\nfrom fmnist_tracking.preprocess_image import prepare",
        f"prepare(Path({str(path)!r}))",
    )
    assert said == ""
    assert megabytes < 1000


def saved(folder: Path, image: Image.Image) -> Path:
    path = folder / "saved.png"
    image.save(path)
    return path


def test_a_background_that_is_not_plain_is_told() -> None:
    random = np.random.default_rng(0)
    grain = random.normal(0, 2, (200, 200))
    plain = np.asarray(thing((200, 200), 240, 20)) + grain
    stripes = np.where(np.arange(200) // 10 % 2, 240, 120) + np.zeros((200, 1))
    half = np.where(np.arange(200) < 100, 240, 60)[:, np.newaxis] + np.zeros(200)
    for background, notes in ((plain, ()), (stripes, (NOT_PLAIN,)), (half, (NOT_PLAIN,))):
        shown = np.array(background)
        shown[60:140, 80:120] = 10
        image = Image.fromarray(np.clip(shown, 0, 255).astype(np.uint8))
        assert prepare_image(image).notes == notes


def test_a_thing_that_the_edge_cuts_at_one_side_is_on_a_plain_background() -> None:
    image = Image.new("L", (200, 200), WHITE)
    image.paste(BLACK, (60, 80, 140, 200))
    assert prepare_image(image).notes == ()


def test_a_picture_of_the_data_set_s_size_is_told_not_to_be_trimmed(dataset: Dataset) -> None:
    assert prepare_image(Image.fromarray(dataset.test_images[0])).notes == (NOT_TRIMMED,)
    larger = Image.fromarray(dataset.test_images[0]).resize((29, 29))
    assert NOT_TRIMMED not in prepare_image(larger).notes


# How such files begin; the rest is not looked at.
HEIC, AVIF = (b"\0\0\0\x1cftyp" + brand + b"\0\0\0\0mif1" for brand in (b"heic", b"avif"))
ASK = """
import sys
from pathlib import Path
if "without" in sys.argv:
    sys.modules["pillow_heif"] = None
from fmnist_tracking.preprocess_image import prepare
try:
    print(prepare(Path(sys.argv[1])).size)
except Exception as error:
    print(type(error).__name__, error)
"""


def asked(path: Path, *arguments: str) -> str:
    """What a process that has read no picture before says of one."""
    command = [sys.executable, "-c", ASK, str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_phone_s_format_is_recognised_by_content_and_a_way_out_told(tmp_path: Path) -> None:
    for name in ("shoe.heic", "shoe.jpg"):
        (tmp_path / name).write_bytes(HEIC)
        assert asked(tmp_path / name, "without") == (
            f"PictureError {tmp_path / name} is a HEIC picture, which cannot be read here. Install "
            "'fmnist-tracking[heic]', or save the picture as JPEG or PNG.\n"
        )
    for brand in (b"hevm", b"hevs"):  # several layers, as stereo photographs have
        (tmp_path / "two.heic").write_bytes(HEIC.replace(b"heic", brand))
        assert "two.heic is a HEIC picture, which" in asked(tmp_path / "two.heic", "without")
    (tmp_path / "shoe.avif").write_bytes(AVIF)
    # Pillow reads it from 11.3 on, and then this one is damaged.
    readable = Image.registered_extensions().get(".avif") in Image.OPEN
    told = "that is damaged" if readable else "which cannot be read here. Install Pillow 11.3"
    assert f"shoe.avif is an AVIF picture{'' if readable else ','} {told}" in asked(
        tmp_path / "shoe.avif"
    )
    (tmp_path / "text.heic").write_text("no picture at all")
    assert "is no picture of a format that can be read" in asked(tmp_path / "text.heic")


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    image = Image.new("RGB", (60, 80), "white")
    image.paste((10, 20, 30), (10, 10, 40, 50))
    path = tmp_path / "shoe.jpg"
    pillow_heif.from_pillow(image).save(path)
    assert asked(path) == "(60, 80)\n"
    path.write_bytes(path.read_bytes()[:200])
    assert "damaged or cut short" in asked(path)
