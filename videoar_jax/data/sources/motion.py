"""How much moves in a clip: mean length of the optical flow, in pixels a frame.

It is the field `flow` of a sample: of an entry of an index, of a sample's metadata in shards, or of
a line of a folder's `captions.jsonl`. Nothing here measures it.
"""

import json
import math
from pathlib import Path

from videoar_jax.data.sources.captions import CAPTIONS, read_lines
from videoar_jax.data.sources.media_files import Names, printable

UNKNOWN = math.nan  # Of a clip whose motion is not known.


def flow_of(facts: dict) -> float:
  """Returns the motion of a sample; `UNKNOWN` where there is none.

  Raises:
    ValueError: it is not a number of 0 or more.
  """
  value = facts.get("flow")
  if value is None:
    return UNKNOWN
  if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
    raise ValueError("flow is not a number of 0 or more")
  if math.isinf(value):
    raise ValueError("flow is not finite")
  return float(value)


def read_flows(folder: Path, media: list[str]) -> dict[str, float]:
  """Returns the motion of each file for which `captions.jsonl` has one.

  Args:
    folder: of the files and the list, which `captions.read_captions` has read without an error.
    media: the files.
  Raises:
    ValueError: one is wrong; the message names the file and line, and how to fix it.
  """
  names, flows = Names(media), {}
  for number, line in read_lines(folder / CAPTIONS):
    entry = json.loads(line)
    try:
      flow = flow_of(entry)
    except ValueError as error:
      place = f"{printable(str(folder / CAPTIONS))}, line {number}"
      raise ValueError(f"{place}: {error}, but {entry['flow']!r}; fix or remove it.") from None
    if not math.isnan(flow):
      flows[names.find(entry["file"])] = flow
  return flows
