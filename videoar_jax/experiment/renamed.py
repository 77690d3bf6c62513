"""Renamed config fields: workdirs made with the old names still load."""

import re
from typing import Any

# Old name -> new name, dotted; a star stands for a user's stage name.
_LOOP = {
  "num_kept": "max_to_keep",
  "keep_every": "keep_period",
  "accumulation_steps": "grad_accum_steps",
  "optimizer.clip_norm": "optimizer.grad_clip_norm",
}
_LOSS = {
  "absolute": "l1",
  "squared": "l2",
  "perceptual": "lpips",
  "perceptual_frames": "lpips_frames",
  "perceptual_weights": "lpips_weights",
  "remainder": "quantization_error",
  "adversarial.optimizer.clip_norm": "adversarial.optimizer.grad_clip_norm",
  "p_drop_text": "text_dropout",
}
_GENERATOR = {
  "depth": "num_layers",
  "width": "d_model",
  "head_width": "head_dim",
  "mlp_width": "mlp_dim",
  "is_scanned": "scan_layers",
  "past": "context",
  "previous": "prev_frame_input",
}
RENAMED: dict[str, str] = {
  "schedule": "tokenizer.schedule",
  **{f"generator.{old}": f"generator.{new}" for old, new in _GENERATOR.items()},
  **{f"stage.*.loop.{old}": f"stage.*.loop.{new}" for old, new in _LOOP.items()},
  **{f"stage.*.loss.{old}": f"stage.*.loss.{new}" for old, new in _LOSS.items()},
  "stage.*.num_frames": "stage.*.data.num_frames",
  "stage.*.start": "stage.*.init.from",
  "stage.*.continues": "stage.*.init.with_optimizer",
  "stage.*.inflate.path": "stage.*.init.from",
  "stage.*.inflate.rest": "stage.*.init.temporal",
  "stage.*.images.share": "stage.*.mixture.images.weight",
  "stage.*.images.batch_size": "stage.*.mixture.images.batch_size",
}
# Renamed values, by the field's new name.
_VALUES = {
  "generator.context": {"final": "full_frame"},
  "generator.prev_frame_input": {"first": "first_scale", "all": "all_scales"},
}
# Former defaults of a discriminator's optimizer, which have changed since.
_ADVERSARIAL_OPTIMIZER = {"b1": 0.9, "b2": 0.95, "weight_decay": 0.05}


def check_renamed(values: dict) -> None:
  """Checks that a config uses no old names.

  Raises:
    ValueError: it does; lists each with its new name.
  """
  lines = []
  for name, value in _flatten(values).items():
    if new := new_name(name):
      lines.append(f"config.{name} is now config.{new}")
    elif isinstance(value, str) and value in _VALUES.get(name, {}):
      lines.append(f"config.{name}={value!r} is now {_VALUES[name][value]!r}")
  if lines:
    raise ValueError("fields were renamed: " + "; ".join(lines))


def with_new_names(values: dict) -> dict:
  """Converts a config that an earlier version saved to today's names and sections."""
  stages = {k: _with_parts(x) for k, x in values.get("stage", {}).items()}
  if "family" not in values:  # Earlier versions did not save it.
    stages = {name: _with_unset_texts(section) for name, section in stages.items()}
  if values.get("family") == "infinity_star":
    stages = {name: _with_plain_captions(section) for name, section in stages.items()}
  values = {**values, "stage": stages}
  flat = _flatten(values)
  result: dict = {}
  for name, value in flat.items():
    if new_name(name) is None:
      _set(result, name, value)
  # Last, because old fields took precedence: a stage's `num_frames` over its `data.num_frames`.
  for name, value in flat.items():
    new = new_name(name)
    # Old fields of a stage that were off do not override the new ones.
    if new is not None and (value or not re.fullmatch(r"schedule|stage\.[^.]+\.\w+", name)):
      _set(result, new, value)
  for name, values_of in _VALUES.items():
    value = _flatten(result).get(name)
    if isinstance(value, str) and value in values_of:
      _set(result, name, values_of[value])
  return result


def _with_parts(section: dict) -> dict:
  """Returns a stage's section without the former subsections `images` and `inflate`.

  Single frames that were trained on alongside clips become a part of a mixture, as do the clips.
  """
  section = dict(section)
  images, inflate = section.pop("images", {}), section.pop("inflate", {})
  if inflate.get("path"):
    section["init"] = {"from": inflate["path"], "temporal": inflate.get("rest", "zeros")}
  if images.get("share"):
    share = images["share"]
    section["mixture"] = {
      "clips": {"weight": round(1 - share, 12)},
      "images": {"weight": share, "num_frames": 1, "batch_size": images.get("batch_size", 1)},
    }
  adversarial = section.get("loss", {}).get("adversarial", {})
  if adversarial.get("weight"):
    optimizer = _ADVERSARIAL_OPTIMIZER | adversarial.get("optimizer", {})
    section["loss"] = section["loss"] | {"adversarial": adversarial | {"optimizer": optimizer}}
  return section


def _with_unset_texts(section: dict) -> dict:
  """Returns a stage's section in which "" unsets a text of the run's data, as None once did."""

  def unset(data: dict) -> dict:
    texts = ("path", "filter", "split_file")
    return {k: "" if x is None and k in texts else x for k, x in data.items()}

  section = dict(section)
  if "data" in section:
    section["data"] = unset(section["data"])
  if "mixture" in section:
    section["mixture"] = {name: unset(part) for name, part in section["mixture"].items()}
  return section


def _with_plain_captions(section: dict) -> dict:
  """Returns a stage's section in which captions are taken as they are, as they once were."""
  loss = section.get("loss", {})
  if section.get("kind") != "generator" or not loss:
    return section
  return section | {"loss": {"caption_prefix": ""} | loss}


def new_name(name: str) -> str | None:
  """Returns the new name of an old one; None if it is not an old name."""
  for old, new in RENAMED.items():
    match = re.fullmatch(re.escape(old).replace(r"\*", "([^.]+)"), name)
    if match:
      return new.replace("*", match[1]) if match.groups() else new
  return None


def _flatten(values: dict, prefix: str = "") -> dict[str, Any]:
  """Returns values by their dotted names; an empty section counts as a value."""
  flat = {}
  for name, value in values.items():
    if isinstance(value, dict) and value:
      flat |= _flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat


def _set(values: dict, name: str, value: Any) -> None:
  *sections, last = name.split(".")
  for part in sections:
    values = values.setdefault(part, {})
  values[last] = value
