"""The page that the hub shows of a model: its README.md."""

import json
import math
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from videoar_jax.experiment import model_folder
from videoar_jax.interop.tensor_files import TensorFiles

SHEET = "samples.png"
_LIBRARY = "videoar_jax"
_LICENSE = r"[a-z0-9][a-z0-9.+-]*"  # Such as apache-2.0, cc-by-4.0.
_NO_SCORES = ("data", "protocol", "seconds")  # Sections of results that say how they were measured.


def model_card(
  folder: pathlib.Path,
  repository: str,
  *,
  license_name: str | None = None,
  scores: Mapping[str, Any] | None = None,
  has_sheet: bool = False,
) -> str:
  """Returns the text of a model's page.

  Args:
    folder: of the model.
    repository: OWNER/NAME.
    license_name: the hub's name of the licence of the weights; None if it is not known.
    scores: contents of a file that `evaluate` wrote.
    has_sheet: whether the repository has a picture `SHEET`.
  Raises:
    ValueError: the model is damaged, or the name of the licence has an impossible form.
  """
  if license_name is not None and not re.fullmatch(_LICENSE, license_name):
    raise ValueError(
      f"--license={license_name} must be a name that the hub uses, such as apache-2.0 or other"
    )
  values = model_folder.load_values(folder)
  facts = json.loads((folder / model_folder.FILE).read_text())
  lines = [
    *_head(values, license_name),
    f"# {repository.partition('/')[2]}",
    "",
    f"Weights for {_LIBRARY}, of the family {values['family']}: {facts['source']}.",
    "",
    *_table(("", ""), _sizes(folder, values, facts["files"])),
    *_commands(repository, values),
    "## Settings of sampling",
    "",
    "Flags of the same names change them.",
    "",
    *_table(("setting", "value"), _settings(values["sampling"])),
  ]
  if scores is not None:
    lines += ["## Scores", "", *_table(("score", "value"), _flat(scores))]
  if has_sheet:
    lines += ["## Samples", "", f"![samples]({SHEET})", ""]
  return "\n".join(lines)


def _head(values: dict, license_name: str | None) -> list[str]:
  """Returns the YAML that the hub reads; every value is plain."""
  task = "text-to-image" if values["data"]["num_frames"] == 1 else "text-to-video"
  lines = ["---", f"library_name: {_LIBRARY}", f"pipeline_tag: {task}"]
  lines += [f"license: {license_name}"] if license_name is not None else []
  return [*lines, "tags:", "- jax", f"- {values['family']}", "---", ""]


def _sizes(folder: pathlib.Path, values: dict, files: dict) -> Iterator[tuple[str, str]]:
  shapes = TensorFiles(folder / model_folder.WEIGHTS).shapes
  yield "parameters of the generator", f"{sum(map(math.prod, shapes.values())):,}"
  for field, value in values["generator"].items():
    if value is not None and re.fullmatch(r"d_model|num_(\w+_)?layers", field):
      yield field, f"{value:,}"
  data = values["data"]
  height, width = data["resolution"]
  if data["num_frames"] == 1:
    yield "images", f"{height}x{width} pixels"
  else:
    rate = f", {data['frame_rate']:g} a second" if data["frame_rate"] else ""
    yield "clips", f"{data['num_frames']} frames of {height}x{width} pixels{rate}"
  yield "prompts", _prompts(values)
  size = sum(facts["bytes"] for facts in files.values())
  yield "files", f"{len(files)}, {size / 1e9:.3g} GB"


def _prompts(values: dict) -> str:
  """Returns what encodes prompts."""
  path, length = pathlib.Path(values["text"]["tokenizer"]), values["text"]["length"]
  if path.name in ("bytes", "words"):
    return f"{path.name}, up to {length}"
  if path.name == "classes":
    return "names of classes"
  if path.suffix == ".safetensors":
    return f"features of a text encoder that is not in here, up to {length}"
  return f"{path.name}, up to {length} tokens"


def _commands(repository: str, values: dict) -> list[str]:
  what, prompts = '--prompt="a fox runs through snow"', '"a fox runs through snow"'
  if values["text"]["tokenizer"] == "classes":
    classes = values["text"]["classes"]
    what, prompts = "--class_id=0", json.dumps(classes[0] if classes else "")
  features = values["text"]["tokenizer"].endswith(".safetensors")
  flag = " --text_features=FOLDER" if features else ""
  argument = ', text_features="FOLDER"' if features else ""
  return [
    "## Sample",
    "",
    "```",
    f"python -m videoar_jax.sample --model=hf://{repository} {what}{flag} --out=samples",
    "```",
    "",
    "```python",
    "import videoar_jax",
    "",
    f'model = videoar_jax.load_model("hf://{repository}"{argument})',
    f"clips = model.sample([{prompts}], seed=0)  # uint8 [b, f, H, W, 3]",
    "```",
    "",
  ]


def _settings(sampling: dict) -> Iterator[tuple[str, str]]:
  for name, value in sampling.items():
    if isinstance(value, dict):  # A section.
      yield from ((f"{name}.{field}", text) for field, text in _settings(value))
      continue
    if isinstance(value, str) and value.endswith(".json"):
      value = pathlib.Path(value).name
    if value is not None:
      yield name, f"`{value}`"


def _flat(scores: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
  """Yields the numbers of nested sections, without those that say how they were measured."""
  if not prefix and isinstance(scores.get("data"), dict) and "num_clips" in scores["data"]:
    yield "test clips", f"{scores['data']['num_clips']:,}"
  for name, value in scores.items():
    if not prefix and name in _NO_SCORES:
      continue
    if isinstance(value, Mapping):
      yield from _flat(value, f"{prefix}{name}, ")
    elif isinstance(value, int | float) and not isinstance(value, bool):
      yield f"{prefix}{name}", f"{value:.4g}" if isinstance(value, float) else f"{value:,}"


def _table(head: tuple[str, str], rows) -> list[str]:
  lines = [" | ".join(cell.replace("|", r"\|") for cell in row) for row in (head, *rows)]
  return [f"| {lines[0]} |", "|---|---|", *(f"| {line} |" for line in lines[1:]), ""]
