"""Pictures are read as a viewer shows them."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from narcli.errors import CheckpointError
from narcli.viz.sheets import as_shown, read_picture, suffixes

RED, WHITE = (255, 0, 0), (255, 255, 255)


def four():
    """A picture of 4 x 2 pixels whose corners differ."""
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10
    return Image.fromarray(pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_pictures_are_upright(orientation, suffix, tmp_path):
    exif = Image.Exif()
    exif[0x112] = orientation
    stored = four()
    stored.save(tmp_path / f"a{suffix}", exif=exif, **({"lossless": True} if suffix == ".webp" else {}))
    expected = four()
    expected.getexif()[0x112] = orientation
    expected = ImageOps.exif_transpose(expected)
    assert expected.size == ((2, 4) if orientation > 4 else (4, 2))
    assert np.array_equal(read_picture(tmp_path / f"a{suffix}"), expected)


def test_broken_exif_data_is_left_alone(tmp_path):
    four().save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.array_equal(read_picture(tmp_path / "a.png"), four())


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"]
)
def test_white_is_white_in_every_mode(mode):
    white = {
        "La": (255, 255),
        "CMYK": (0, 0, 0, 0),
        "YCbCr": (255, 128, 128),
        "HSV": (0, 0, 255),
        "LAB": (255, 128, 128),
    }
    if mode == "PA":
        image = Image.new("P", (3, 2), "white").convert("PA")
    else:
        image = Image.new(mode, (3, 2), white.get(mode, "white"))
    shown = as_shown(image)
    assert (shown.mode, shown.size) == ("RGB", (3, 2)) and min(shown.getpixel((1, 1))) >= 254


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
def test_more_than_8_bits_are_scaled_and_not_clipped(mode):
    levels = np.array([[0, 256, 32768, 65535]])
    kind = {"I;16": "<u2", "I;16B": ">u2", "I": "int32", "F": "float32"}[mode]
    levels = levels / 65535 if mode == "F" else levels
    image = Image.frombytes(mode, (4, 1), levels.astype(kind).tobytes())
    assert np.asarray(as_shown(image))[0, :, 0].tolist() == [0, 1, 128, 255]


def tiff(path, pixels, width, bits, photometric=1, sample_format=1):
    """Write a TIFF file of one row and one channel."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 1, 279: len(pixels),
            339: sample_format}  # fmt: skip
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    start = 8 + len(pixels) + len(pixels) % 2
    content = b"II*\0" + struct.pack("<I", start) + pixels.ljust(start - 8, b"\0")
    path.write_bytes(content + struct.pack("<H", len(tags)) + entries + bytes(4))
    return path


def test_the_depth_and_sign_of_a_tiff_file_are_read(tmp_path):
    def row(pixels, *about):
        return np.asarray(read_picture(tiff(tmp_path / "a.tif", pixels, 2, *about)))[0, :, 0].tolist()

    assert row(bytes.fromhex("800fff"), 12) == [128, 255]
    assert row(np.array([0x8000, 0xFFFF], "<u2").tobytes(), 16) == [128, 255]
    assert row(np.array([0, 0xC000], "<u2").tobytes(), 16, 0) == [255, 64]
    assert row(np.array([-5, 0x7FFF], "<i2").tobytes(), 16, 1, 2) == [0, 255]
    assert row(np.array([0x80000000, 0xFFFFFFFF], "<u4").tobytes(), 32) == [128, 255]
    assert row(np.array([0x8000, 0xFFFF], "<u4").tobytes(), 32) == [128, 255]
    assert row(np.array([-5, 0x7FFFFFFF], "<i4").tobytes(), 32, 1, 2) == [0, 255]
    assert row(np.array([0, 0.25], "<f4").tobytes(), 32, 0, 3) == [255, 191]


def test_a_16_bit_png_is_as_bright_as_its_8_bit_twin(tmp_path):
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(levels * 257).save(tmp_path / "deep.png")
    assert np.array_equal(np.asarray(read_picture(tmp_path / "deep.png"))[..., 0], levels)


def test_transparency_is_white_in_palettes_and_by_colour(tmp_path):
    for mode, key in (("P", 0), ("L", 0), ("RGB", (0, 0, 0))):
        Image.new(mode, (2, 2), 0).save(tmp_path / f"{mode}.png", transparency=key)
        assert read_picture(tmp_path / f"{mode}.png").getpixel((0, 0)) == WHITE, mode
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    assert as_shown(half).getpixel((0, 0)) == (127, 127, 127)


def test_colour_profiles_are_converted_to_srgb(tmp_path):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    four().save(tmp_path / "srgb.png", icc_profile=srgb)
    assert np.array_equal(read_picture(tmp_path / "srgb.png"), four())
    Image.new("LAB", (1, 1), (128, 128, 128)).save(tmp_path / "lab.tif", icc_profile=lab)
    assert read_picture(tmp_path / "lab.tif").getpixel((0, 0)) == (119, 119, 119)
    for broken in (b"nothing", lab):  # damaged, or of another space than the pixels
        four().save(tmp_path / "broken.png", icc_profile=broken)
        assert np.array_equal(read_picture(tmp_path / "broken.png"), four())


def test_cmyk_of_adobe_is_not_inverted(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(np.subtract(read_picture(tmp_path / "a.jpg").getpixel((4, 4)), RED)).max() <= 3


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_of_an_animation_the_first_frame_is_read_and_that_is_told(suffix, tmp_path):
    path, said = tmp_path / f"a{suffix}", []
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    first.save(
        path, save_all=True, append_images=[second], **({"lossless": True} if suffix == ".webp" else {})
    )
    assert read_picture(path, said.append).getpixel((0, 0)) == RED
    assert said == [f"{path} has 2 frames or pages: the first is read."]
    assert suffix in suffixes()


def test_what_is_no_picture_is_one_sentence(tmp_path, monkeypatch):
    four().save(buffer := io.BytesIO(), "PNG")
    whole = buffer.getvalue()
    for name, content, says in (
        ("empty.png", b"", r"it is empty \(0 bytes\)"),
        ("text.png", b"hello", "of no format that narcli reads"),
        ("cut.png", whole[:50], "cannot be read as a picture"),
        ("post.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "of no format"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=says) as caught:
            read_picture(tmp_path / name)
        assert name in caught.value.message
    with pytest.raises(CheckpointError, match=r"none\.png: no such file"):
        read_picture(tmp_path / "none.png")
    (tmp_path / "large.png").write_bytes(whole)
    for most in ("narcli.viz.sheets.MAX_PIXELS", "PIL.Image.MAX_IMAGE_PIXELS"):
        with monkeypatch.context() as patched, pytest.raises(CheckpointError, match="pixels"):
            patched.setattr(most, 3)
            read_picture(tmp_path / "large.png")
