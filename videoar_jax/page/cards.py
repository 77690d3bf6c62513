"""Clips as HTML: a card for each, with its newest picture and a strip of its frames."""

import base64
import html
import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from videoar_jax.evals.media import slug
from videoar_jax.page.studio import Growth

_MAX_CELLS = 17  # Frames of a strip; longer clips show evenly spaced ones.
_STRIP_SIDE = 64  # Height of a strip in pixels.
_SHARP_SIDE = 160  # Smaller clips are shown with sharp pixels.
_EMPTY = (226, 230, 236)


def data_uri(image: UInt8[np.ndarray, "y x 3"]) -> str:
  """Returns an image as the text of a `data:` address: small ones exactly, large ones as JPEG."""
  is_small = max(image.shape[:2]) <= _SHARP_SIDE or image.shape[0] <= _STRIP_SIDE
  kind, buffer = ("png", io.BytesIO()) if is_small else ("jpeg", io.BytesIO())
  settings = {"compress_level": 3} if is_small else {"quality": 90}
  Image.fromarray(np.ascontiguousarray(image)).save(buffer, kind, **settings)
  return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def strip(frames: UInt8[np.ndarray, "f H W 3"], num_frames: int) -> UInt8[np.ndarray, "y x 3"]:
  """Draws frames side by side, with empty places for those that are still to come.

  Args:
    frames: that are there.
    num_frames: of the whole clip; more than fit are evenly spaced, first and last included.
  """
  height, width = frames.shape[1:3]
  scale = min(1.0, _STRIP_SIDE / height)
  size = (max(1, round(width * scale)), max(1, round(height * scale)))
  shown = np.unique(np.linspace(0, num_frames - 1, min(num_frames, _MAX_CELLS)).round().astype(int))
  gap = max(1, size[1] // 16)
  sheet = np.full((size[1], len(shown) * (size[0] + gap) - gap, 3), 255, np.uint8)
  for i, t in enumerate(shown):
    left = i * (size[0] + gap)
    cell = np.full((size[1], size[0], 3), _EMPTY, np.uint8)
    if t < len(frames):
      cell = np.asarray(Image.fromarray(frames[t]).resize(size, Image.Resampling.BOX))
    sheet[:, left : left + size[0]] = cell
  return sheet


def cards(
  growth: Growth,
  sources: list[str] | None = None,
  readings: list[list[tuple[str, bool]]] | None = None,
  *,
  is_stopped: bool = False,
) -> str:
  """Returns the page's part with the clips.

  Args:
    growth: the clips as far as they have been made.
    sources: addresses of their mp4 files, once they are finished.
    readings: what an oracle reads in each, in words, each with whether it is right.
    is_stopped: whether they were cancelled.
  """
  wish, parts = growth.wish, []
  for i in range(wish.num_clips):
    frames = None if growth.frames is None else growth.frames[i]
    source = None if sources is None else sources[i]
    reading = None if readings is None else readings[i]
    parts.append(_card(growth, i, frames, source, reading))
  if is_stopped:
    state, status = "stopped", _status(growth, sources, "cancelled at ")
  else:
    state, status = _state(growth, sources), _status(growth, sources)
  return (
    f'<div class="stage" data-state="{state}">{status}'
    f'<div class="cards n{wish.num_clips}">{"".join(parts)}</div></div>'
  )


def notice(text: str, state: str) -> str:
  """Returns what stands in place of clips; `state` is "empty", "waiting" or "stopped"."""
  mark = '<span class="spinner"></span>' if state == "waiting" else '<span class="reel"></span>'
  return (
    f'<div class="stage" data-state="{state}"><div class="notice">{mark}'
    f"<p>{html.escape(text)}</p></div></div>"
  )


def _state(growth: Growth, sources) -> str:
  if sources is not None:
    return "finished"
  return "starting" if growth.newest is None else "growing"


def _status(growth: Growth, sources, before: str = "") -> str:
  """Returns a line that says how far the clips are, over a bar."""
  wish, part = growth.wish, growth.newest
  prompt = html.escape(wish.prompt)
  if sources is not None:
    text = f"{wish.num_frames} frames"
  elif part is None:
    text = "reading the prompt"
  else:
    first, last = part.start + 1, min(part.start + part.frames.shape[1], wish.num_frames)
    which = f"frame {first}" if first == last else f"frames {first} to {last}"
    text = f"{which} of {wish.num_frames}"
    if part.num_scales > 1:
      text += f" · scale {part.num_done} of {part.num_scales}"
  share = 1.0 if sources is not None else growth.share
  return (
    f'<div class="status"><span class="prompt">{prompt}</span>'
    f'<span class="step">{before}{text}</span></div>'
    f'<div class="bar"><i style="width:{100 * share:.1f}%"></i></div>'
  )


def _card(growth: Growth, number: int, frames, source: str | None, reading) -> str:
  wish = growth.wish
  label = f"seed {wish.seed} · clip {number}"
  if frames is None or not len(frames):
    return (
      f'<figure class="card"><div class="picture"></div><figcaption>{label}</figcaption></figure>'
    )
  height, width = frames.shape[1:3]
  style = f"aspect-ratio:{width}/{height}"
  sharp = " sharp" if min(height, width) < _SHARP_SIDE else ""
  if source is None:
    picture = f'<img decoding="sync" src="{data_uri(frames[-1])}" alt="newest frame">'
  else:
    settings = "autoplay loop muted playsinline"
    picture = f'<video src="{source}" poster="{data_uri(frames[0])}" {settings}></video>'
  cells = (
    f'<img class="strip" decoding="sync" src="{data_uri(strip(frames, wish.num_frames))}" alt="">'
  )
  name = f"{slug(wish.prompt)}_{wish.seed}_{number}.mp4"
  save = (
    ""
    if source is None
    else f'<a class="save" href="{source}" download="{name}" title="Download as mp4">mp4 ↓</a>'
  )
  words = ""
  if reading:
    spans = "".join(
      f'<span class="{"right" if is_right else "wrong"}">{html.escape(word)}</span> '
      for word, is_right in reading
    )
    words = f'<div class="reading" title="What a program reads from the pixels">{spans}</div>'
  return (
    f'<figure class="card{sharp}"><div class="picture" style="{style}">{picture}</div>{cells}'
    f"<figcaption><span>{label}</span>{save}</figcaption>{words}</figure>"
  )
