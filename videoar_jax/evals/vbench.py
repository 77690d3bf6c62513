"""VBench: writes the clips that its evaluator takes, and reads the results that it writes.

VBench (arXiv 2311.17982) scores clips of its own prompts by 16 dimensions. Its evaluator looks in
one folder for files `PROMPT-INDEX.mp4`, with index 0 to 4 for each prompt of the dimensions that it
is asked for. It takes the ending of all files from the one that is listed first, so that the folder
must have nothing else.

`VBench_full_info.json` of the package `vbench` has the prompts. VBench itself is not needed here.
"""

import dataclasses
import hashlib
import importlib.util
import json
import os
import pathlib
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from videoar_jax.evals.cost import cost_lines
from videoar_jax.interop.strict_json import write_json

INFO = "VBench_full_info.json"
VIDEOS = "videos"  # Folder of the clips, in that of the suite.
MANIFEST = "vbench.json"
COST = "vbench_cost.json"
SCORES = "vbench_scores.json"

NUM_SAMPLES = 5  # Clips of a prompt that the evaluator reads: `VBench.build_full_info_json`.
# Of this dimension the evaluator reads clips that `static_filter.py` found to be still: five a
# prompt, which takes more to choose from. VBench's authors recommend "e.g., 40" (thread 94 of its
# page on GitHub); published sets of clips have 25 (thread 84).
NUM_STILL_SAMPLES = 25
STILL = "temporal_flickering"
_MOST = max(NUM_SAMPLES, NUM_STILL_SAMPLES)
_MAX_PROMPT = 230  # Bytes; file systems limit names to 255, and a file that is written has more.


@dataclasses.dataclass(frozen=True)
class Dimension:
  """How a dimension's score counts: `scripts/constant.py` of VBench.

  Attributes:
    is_quality: whether it belongs to the quality score; else to the semantic score.
    low, high: scores that count as 0 and 1.
    weight: in the mean.
  """

  is_quality: bool
  low: float = 0.0
  high: float = 1.0
  weight: float = 1.0


DIMENSIONS = {
  "subject_consistency": Dimension(True, 0.1462),
  "background_consistency": Dimension(True, 0.2615),
  "temporal_flickering": Dimension(True, 0.6293),
  "motion_smoothness": Dimension(True, 0.706, 0.9975),
  "dynamic_degree": Dimension(True, weight=0.5),
  "aesthetic_quality": Dimension(True),
  "imaging_quality": Dimension(True),
  "object_class": Dimension(False),
  "multiple_objects": Dimension(False),
  "human_action": Dimension(False),
  "color": Dimension(False),
  "spatial_relationship": Dimension(False),
  "scene": Dimension(False, high=0.8222),
  "appearance_style": Dimension(False, 0.0009, 0.2855),
  "temporal_style": Dimension(False, high=0.364),
  "overall_consistency": Dimension(False, high=0.364),
}
_QUALITY_WEIGHT, _SEMANTIC_WEIGHT = 4, 1


@dataclasses.dataclass(frozen=True)
class Clip:
  """A clip that VBench wants.

  Attributes:
    file: its name.
    prompt: its text.
    sample_id: its number under the seed: the prompt's place in VBench's list, times 25, plus the
      index of the clip. So a clip does not depend on which dimensions are asked for.
  """

  file: str
  prompt: str
  sample_id: int


def find_info(path: str | None) -> pathlib.Path:
  """Returns VBench's list of prompts: by its path, or that of the installed package.

  Raises:
    ValueError: there is none.
  """
  if path is not None:
    return pathlib.Path(path).expanduser()
  # Found without importing it, which needs torch.
  spec = importlib.util.find_spec("vbench")
  for folder in (spec and spec.submodule_search_locations) or ():
    if (pathlib.Path(folder) / INFO).is_file():
      return pathlib.Path(folder) / INFO
  raise ValueError(
    f"--suite=vbench needs VBench's list of prompts: add --vbench_info={INFO}, or "
    "`pip install --no-deps vbench`"
  )


def read_info(path: pathlib.Path) -> list[dict]:
  """Reads VBench's list of prompts.

  Raises:
    ValueError: it is missing, or something else; names the file.
  """
  info = _read_json(path, "--vbench_info")
  is_list = isinstance(info, list) and len(info) > 0
  if not is_list or not all(isinstance(x, dict) and _is_entry(x) for x in info):
    raise ValueError(
      f"--vbench_info={path} is no list of prompts with their dimensions; name VBench's {INFO}"
    )
  return info


def _is_entry(entry: dict) -> bool:
  names = entry.get("dimension")
  return isinstance(entry.get("prompt_en"), str) and isinstance(names, list) and bool(names)


def _read_json(path: pathlib.Path, flag: str) -> Any:
  try:
    return json.loads(path.read_text("utf-8"))
  except OSError as error:
    raise ValueError(f"{flag}={path} cannot be read ({error.strerror})") from error
  except ValueError as error:
    raise ValueError(f"{flag}={path} is not valid JSON ({error})") from error


def parse_dimensions(text: str | None, info: list[dict]) -> list[str]:
  """Returns the dimensions of `--dimensions`, joined by commas; None stands for all.

  Raises:
    ValueError: one is unknown; lists those known.
  """
  known = {name for entry in info for name in entry["dimension"]}
  known = [name for name in DIMENSIONS if name in known] + sorted(known - DIMENSIONS.keys())
  if text is None:
    return known
  names = [name.strip() for name in text.split(",")]
  for name in names:
    if name not in known:
      raise ValueError(f"--dimensions: {name!r} is unknown; known are {', '.join(known)}")
  return list(dict.fromkeys(names))


def clips_of(info: list[dict], dimensions: Iterable[str]) -> list[Clip]:
  """Returns the clips that VBench wants for some dimensions, in the order of its list.

  Raises:
    ValueError: a prompt cannot be the name of a file.
  """
  wanted, numbers, counts = set(dimensions), {}, {}
  for number, entry in enumerate(info):
    prompt, own = entry["prompt_en"], wanted & set(entry["dimension"])
    numbers.setdefault(prompt, number)  # Some prompts are listed twice.
    if own:
      count = NUM_STILL_SAMPLES if STILL in own else NUM_SAMPLES
      counts[prompt] = max(count, counts.get(prompt, 0))
  for prompt in counts:
    if "/" in prompt or "\0" in prompt or len(os.fsencode(prompt)) > _MAX_PROMPT:
      raise ValueError(f"--vbench_info: the prompt {prompt!r} cannot be the name of a file")
  return [
    Clip(f"{prompt}-{index}.mp4", prompt, _MOST * numbers[prompt] + index)
    for prompt, count in counts.items()
    for index in range(count)
  ]


def check_folder(folder: pathlib.Path, clips: list[Clip]) -> list[Clip]:
  """Returns the clips that are missing in a folder.

  Raises:
    ValueError: it has anything else, or a file system that takes two names for one; names it.
  """
  if not folder.is_dir():
    return clips
  sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder)}
  others = sorted(name for name in sizes if not name.endswith(".mp4"))
  if others:
    raise ValueError(
      f"{folder} has {others[0]!r}, but VBench takes the ending of all clips from the first file "
      "there; move it elsewhere"
    )
  return [clip for clip in clips if not sizes.get(clip.file)]


def start_manifest(out: pathlib.Path, facts: dict, clips: list[Clip]) -> None:
  """Writes what a folder's clips are made of, before the first one is.

  Args:
    out: the suite's folder.
    facts: all that clips depend on, as JSON.
    clips: to make; those of earlier calls stay listed.
  Raises:
    ValueError: the folder has clips that were made otherwise; names what differs.
  """
  path, before = out / MANIFEST, {}
  if path.is_file():
    found = _read_json(path, "--out")
    before = {clip["file"]: clip for clip in found.get("clips", ())}
    for name, value in facts.items():
      if found.get("made_with", {}).get(name) != json.loads(json.dumps(value)):
        raise ValueError(
          f"--out={out} has clips of another {name}: {found.get('made_with', {}).get(name)!r}, now "
          f"{value!r}; name another folder"
        )
  elif any((out / VIDEOS).glob("*.mp4")):
    raise ValueError(f"--out={out} has clips, but no {MANIFEST} that says how they were made")
  known = before | {clip.file: dataclasses.asdict(clip) for clip in clips}
  write_json(path, {"made_with": facts, "clips": list(known.values())})


def fingerprint(info: list[dict]) -> str:
  """Returns a hash of VBench's list of prompts."""
  return hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()[:16]


def command(out: pathlib.Path, dimensions: list[str], info: pathlib.Path) -> str:
  """Returns the command that scores the clips, where VBench is installed."""
  videos, own = shlex.quote(str(out / VIDEOS)), [name for name in dimensions if name != STILL]
  call = f"vbench evaluate --full_json_dir {shlex.quote(str(info))}"
  lines = []
  if own:
    loop = f"for name in {' '.join(own)}; do"
    lines.append(f"{loop} {call} --videos_path {videos} --dimension $name; done")
  if STILL in dimensions:
    # A file of VBench's repository that its package lacks.
    lines.append(f"python static_filter.py --videos_path {videos} --result_path still")
    lines.append(f"{call} --videos_path still/filtered_videos --dimension {STILL}")
  return "\n".join(lines)


def read_results(path: str) -> dict[str, float]:
  """Reads the scores of VBench's `..._eval_results.json`, by dimension.

  Raises:
    ValueError: it is missing, damaged, or of another version of VBench.
  """
  found = _read_json(pathlib.Path(path).expanduser(), "--read")
  if not isinstance(found, dict) or not found:
    raise ValueError(f"--read={path} has no scores by dimension; name VBench's eval_results.json")
  scores = {}
  for name, value in found.items():
    if name not in DIMENSIONS:
      raise ValueError(
        f"--read={path} has the dimension {name!r}, which VBench 1 does not know: it is of another "
        f"version (VBench-I2V or VBench-2.0); known are {', '.join(DIMENSIONS)}"
      )
    score = value[0] if isinstance(value, list) and value else None
    is_number = isinstance(score, int | float) and not isinstance(score, bool)
    if not is_number or not -1 <= score <= 1:  # Similarities may be below 0.
      raise ValueError(
        f"--read={path}: {name} must be [score, clips] with a score up to 1, found {score!r}; it "
        "is of another version of VBench"
      )
    scores[name] = float(score)
  return scores


def summary(scores: Mapping[str, float]) -> dict[str, float | None]:
  """Returns the quality, semantic and total scores; None where dimensions are missing.

  Source: `scripts/cal_final_score.py` of VBench, which takes 0 for what is missing.
  """
  parts = {}
  for name, is_quality in (("quality", True), ("semantic", False)):
    own = {key: x for key, x in DIMENSIONS.items() if x.is_quality == is_quality}
    parts[name] = None
    if own.keys() <= scores.keys():
      total = sum(x.weight * (scores[key] - x.low) / (x.high - x.low) for key, x in own.items())
      parts[name] = total / sum(x.weight for x in own.values())
  total = None
  if None not in parts.values():
    weighted = _QUALITY_WEIGHT * parts["quality"] + _SEMANTIC_WEIGHT * parts["semantic"]
    total = weighted / (_QUALITY_WEIGHT + _SEMANTIC_WEIGHT)
  return parts | {"total": total}


def read_report(path: str, out: pathlib.Path) -> dict:
  """Returns VBench's results with the scores that follow, and what the clips cost, if it is known.

  Args:
    path: VBench's file.
    out: the suite's folder.
  Raises:
    ValueError: see `read_results`.
  """
  scores = read_results(path)
  cost = _read_json(out / COST, "--out") if (out / COST).is_file() else None
  return {"results": path, "dimensions": scores, **summary(scores), "cost": cost}


def table(result: dict) -> str:
  """Formats a report: scores in per cent, as VBench's leaderboard has them, and costs."""
  scores, cost = result["dimensions"], result["cost"]
  lines = [f"{'VBench, %':26}{'score':>8}{'counts as':>12}"]
  for name, dimension in DIMENSIONS.items():
    if name in scores:
      scaled = (scores[name] - dimension.low) / (dimension.high - dimension.low)
      lines.append(f"{name:26}{100 * scores[name]:8.2f}{100 * scaled:12.2f}")
  for name in ("quality", "semantic", "total"):
    text = "not measured" if result[name] is None else f"{100 * result[name]:.2f}"
    lines.append(f"{name + ' score':26}{text:>20}")
  if missing := [name for name in DIMENSIONS if name not in scores]:
    lines.append(f"missing: {', '.join(missing)}")
  if cost is not None:
    lines.append(f"{'seconds a clip':26}{cost['seconds_a_clip']:8.2f}")
    if cost["steps_a_clip"] is not None:
      lines.append(f"{'steps a clip':26}{cost['steps_a_clip']:8}")
    lines += cost_lines(cost)
  return "\n".join(lines) + "\n"


def write_report(out: pathlib.Path, result: dict) -> list[pathlib.Path]:
  """Writes a report's numbers; returns the file."""
  out.mkdir(parents=True, exist_ok=True)
  write_json(out / SCORES, result)
  return [out / SCORES]
