"""Pictures are seen as they are meant to be, or refused by name: depth, rotation, transparency, bombs, links."""

import io
import os
import zlib

import numpy as np
import photos
import pytest
from PIL import Image

from lib.data.pictures import MOST_PIXELS, FileSource, Pictures, cropped, opened


def read(picture: Image.Image, kind: str = "PNG", **settings) -> np.ndarray:
    """Saved in that format and opened: `[height, width, 3]`."""
    stream = io.BytesIO()
    picture.save(stream, kind, **settings)
    stream.seek(0)
    return np.asarray(opened(stream, "a picture"))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_16_bits_is_scaled(kind):
    grey = np.array([[0, 128, 257, 32768, 65407, 65535]], dtype=np.uint16)
    made = read(Image.fromarray(grey), kind)
    assert made[0, :, 0].tolist() == [0, 0, 1, 128, 255, 255] and (made == made[..., :1]).all()


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_values_without_a_stated_white_are_refused(kind):
    with pytest.raises(ValueError, match="a picture cannot be read .its values are of PIL's mode [FI]"):
        read(Image.fromarray(np.full((4, 4), 1, dtype=kind)), "TIFF")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_a_picture_is_turned_as_its_tag_says(kind):
    """Tag 6: the first row of what is stored is the right side of what is meant."""
    stored = np.full((40, 80, 3), 250, dtype=np.uint8)
    stored[:20] = (10, 20, 230)
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Orientation] = 6
    made = read(Image.fromarray(stored), kind, exif=exif)
    assert made.shape == (80, 40, 3)
    assert abs(made[:, 24:].astype(int) - (10, 20, 230)).max() < 12 and made[:, :16].min() > 235


def test_white_stands_behind_what_is_transparent():
    red = np.zeros((1, 3, 4), dtype=np.uint8)
    red[..., 0], red[0, :, 3] = 200, (0, 255, 51)  # not there, there, a fifth
    assert read(Image.fromarray(red))[0].tolist() == [[255, 255, 255], [200, 0, 0], [244, 204, 204]]
    grey = Image.fromarray(np.array([[[0, 0], [0, 255]]], dtype=np.uint8), "LA")
    assert read(grey)[0].tolist() == [[255] * 3, [0] * 3]
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 9, 9, 80, 90, 100])
    palette.putpixel((1, 0), 1)
    assert read(palette, transparency=0)[0].tolist() == [[255] * 3, [80, 90, 100]]
    assert read(Image.new("RGB", (1, 1), (7, 8, 9)), transparency=(7, 8, 9))[0].tolist() == [[255] * 3]


def bomb() -> bytes:
    """A PNG of a few kB that says it has more pixels than are allowed, all of one value."""
    side = int(MOST_PIXELS**0.5) + 1
    stream = io.BytesIO()
    Image.new("1", (8, 8)).save(stream, "PNG")
    content = bytearray(stream.getvalue())
    content[16:24] = side.to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_not_unpacked():
    with pytest.raises(ValueError, match=f"bomb.png cannot be read .*at most {MOST_PIXELS} are allowed"):
        opened(io.BytesIO(bomb()), "bomb.png")


@pytest.mark.parametrize(
    "content",
    [b"", b"GIF89a", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\x89PNG\r\n\x1a\n" + b"\xff" * 40],
)
def test_what_is_no_picture_is_named(content):
    """PostScript, for which PIL would start another program, among it."""
    with pytest.raises(ValueError, match="picture x.png cannot be read") as refusal:
        opened(io.BytesIO(content), "x.png")
    assert "\n" not in str(refusal.value)


def test_links_out_of_the_data_set_are_refused(tmp_path):
    """Of files and of folders; those within it, and the hub's into its own cache, are followed."""
    data, outside = tmp_path / "data", tmp_path / "outside"
    for folder in (data, outside):
        folder.mkdir()
        photos.image("red").save(folder / "a.png")
    (data / "inner.png").symlink_to("a.png")
    (data / "gone.png").symlink_to("nowhere.png")
    (data / "outer.png").symlink_to(outside / "a.png")
    (data / "folder").symlink_to(outside)
    assert len(FileSource([data / "a.png", data / "inner.png"], data)) == 2
    for path in ("outer.png", "folder/a.png"):
        with pytest.raises(ValueError, match=r"is a link out of .*data: copy it there"):
            FileSource([data / path], data)
    with pytest.raises(ValueError, match="1 of 1 pictures are missing"):
        FileSource([data / "gone.png"], data)
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "0a", tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    os.rename(outside, blobs)
    (snapshot / "a.png").symlink_to("../../blobs/a.png")
    assert FileSource([snapshot / "a.png"], snapshot)[0].size == (80, 60)


def test_a_missing_picture_is_named_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"1 of 1 pictures are missing, the first is '[^\n]*a\\nb.png': copy") as told:
        FileSource([tmp_path / "a\nb.png"], tmp_path)
    assert "\n" not in str(told.value)


def test_pictures_of_no_pixel_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"size=0 of pictures must be a number of pixels from 1"):
        Pictures(FileSource([]), 0, cropped)


def test_what_is_no_picture_is_named_in_one_line(tmp_path):
    (tmp_path / "a\nb.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"picture '[^\n]*a\\nb.png' cannot be read") as told:
        FileSource([tmp_path / "a\nb.png"], tmp_path)[0]
    assert "\n" not in str(told.value)
