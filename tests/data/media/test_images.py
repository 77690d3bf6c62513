"""Still images: transparency, depth, orientation, damaged tags."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from videoar_jax.data import conditioning
from videoar_jax.data.media import clips

HIDDEN, SHOWN = (255, 0, 255), (30, 160, 30)


def cut_out(mode):
  """A square of one colour; around it, transparent pixels that hide magenta."""
  rgba = np.zeros((32, 32, 4), np.uint8)
  rgba[..., :3] = HIDDEN
  rgba[8:24, 8:24] = (*SHOWN, 255)
  image = Image.fromarray(rgba)
  if mode == "LA":
    return image.convert("LA"), {}
  if mode == "P":
    palette = Image.new("P", (32, 32), 0)
    palette.putpalette([*HIDDEN, *SHOWN])
    palette.paste(1, (8, 8, 24, 24))
    return palette, {"transparency": 0}
  if mode == "RGB":
    return image.convert("RGB"), {"transparency": HIDDEN}
  return image, {}


@pytest.mark.parametrize(
  ("mode", "suffix"),
  [("RGBA", "png"), ("RGBA", "webp"), ("LA", "png"), ("P", "png"), ("RGB", "png")],
)
@pytest.mark.parametrize("background", [None, (10, 20, 200)])
def test_what_is_transparent_shows_the_background(tmp_path, mode, suffix, background):
  image, options = cut_out(mode)
  path = tmp_path / f"a.{suffix}"
  image.save(path, **options | ({"lossless": True, "exact": True} if suffix == "webp" else {}))
  given = {} if background is None else {"background": background}
  shown = SHOWN if mode != "LA" else (image.getpixel((16, 16))[0],) * 3
  for frame in (
    clips.read_clip(path, num_frames=1, resolution=(32, 32), **given)[0],
    clips.decode_video(path, (32, 32), **given).frames[0],
    np.asarray(clips.read_image(path, **given)),
  ):
    assert frame[2, 2].tolist() == list(background or (255, 255, 255))
    assert frame[16, 16].tolist() == list(shown)
  if background is None:
    assert (
      conditioning.read_image(str(path), (32, 32), is_resized=False)[2, 2].tolist() == [255] * 3
    )


def test_half_transparent_pixels_are_mixed(tmp_path):
  Image.new("RGBA", (8, 8), (200, 100, 0, 128)).save(tmp_path / "a.png")
  mixed = np.asarray(clips.read_image(tmp_path / "a.png", (0, 0, 0)))[0, 0]
  np.testing.assert_allclose(mixed, [100, 50, 0], atol=1)


@pytest.mark.parametrize("with_hidden", [False, True])
def test_grey_of_16_bits_is_grey_of_8(tmp_path, with_hidden):
  ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (8, 1))
  Image.fromarray(ramp).save(tmp_path / "a.png", **{"transparency": 0} if with_hidden else {})
  read = np.asarray(clips.read_image(tmp_path / "a.png")).astype(int)
  expected = ramp // 257
  if with_hidden:
    expected[:, 0] = 255
  assert np.abs(read - expected[..., None]).max() <= 1


@pytest.mark.parametrize(
  ("kind", "value", "why"),
  [(np.float32, 0.5, "type float32"), (np.int32, 70000, "32 bits"), (np.int32, -1, "32 bits")],
)
def test_pixels_whose_range_is_unknown_are_refused(tmp_path, kind, value, why):
  Image.fromarray(np.full((8, 8), value, kind)).save(tmp_path / "a.tiff")
  with pytest.raises(ValueError, match=f"{why} are not supported"):
    clips.read_image(tmp_path / "a.tiff")


def jpeg(entries, text=b""):
  """A picture of 40x24 with EXIF entries (tag, type, count, value)."""
  tiff = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
  for tag, kind, count, value in sorted(entries):
    tiff += struct.pack("<HHI4s", tag, kind, count, value)
  buffer = io.BytesIO()
  Image.new("RGB", (40, 24), (200, 30, 30)).save(buffer, "jpeg")
  exif = b"Exif\0\0" + tiff + b"\0\0\0\0" + text
  return b"\xff\xd8\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + buffer.getvalue()[2:]


UPRIGHT = (274, 3, 1, struct.pack("<HH", 6, 0))


@pytest.mark.parametrize(
  ("entries", "size"),
  [
    ([UPRIGHT], (24, 40)),
    ([UPRIGHT, (296, 2, 2, b"2\0\0\0")], (24, 40)),  # ResolutionUnit as text.
    ([UPRIGHT, (282, 5, 1, b"\xff\xff\xff\x7f")], (24, 40)),  # A place outside of the file.
    ([(274, 2, 2, b"6\0\0\0")], (40, 24)),  # No number.
    ([(274, 3, 1, struct.pack("<HH", 99, 0))], (40, 24)),
    ([(274, 7, 4, b"\xff\xff\xff\xff")], (40, 24)),
  ],
)
def test_damaged_tags_lose_no_photo(tmp_path, entries, size):
  (tmp_path / "a.jpg").write_bytes(jpeg(entries))
  assert clips.read_image(tmp_path / "a.jpg").size == size
  assert clips.probe(tmp_path / "a.jpg").aspect_ratio == size[1] / size[0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(tmp_path, orientation):
  stored = np.random.default_rng(0).integers(0, 255, (6, 9, 3), np.uint8)
  exif = Image.Exif()
  exif[0x0112] = orientation
  Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
  # The corner of the first row and column, as TIFF 6.0 names it.
  turned = [
    stored,
    stored[:, ::-1],
    stored[::-1, ::-1],
    stored[::-1],
    stored.swapaxes(0, 1),
    np.rot90(stored, -1),
    np.rot90(stored, 2).swapaxes(0, 1),
    np.rot90(stored),
  ]
  assert np.array_equal(clips.read_image(tmp_path / "a.png"), turned[orientation - 1])


def test_pictures_of_absurd_size_are_refused_before_they_are_decoded(tmp_path):
  Image.new("L", (8, 8)).save(tmp_path / "a.png")
  data = (tmp_path / "a.png").read_bytes().replace(struct.pack(">II", 8, 8), b"\0\1\0\0\0\1\0\0")
  (tmp_path / "a.png").write_bytes(data)
  with pytest.raises(ValueError, match=r"cannot be decoded as an image|more than"):
    clips.read_image(tmp_path / "a.png")
