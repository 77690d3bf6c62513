"""Fields of configs that had other names: runs made with these still load."""

import re
from typing import Any

# Old name -> new name, dotted; a star stands for a name that people chose.
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
# Values that had other names, by a field's new name.
_VALUES = {
  "generator.context": {"final": "full_frame"},
  "generator.prev_frame_input": {"first": "first_scale", "all": "all_scales"},
}


def check_renamed(values: dict) -> None:
  """Checks that a config has none of the old names.

  Raises:
    ValueError: it has; lists each with its new name.
  """
  lines = []
  for name in _names(values):
    new = _new_name(name)
    if new is not None:
      lines.append(f"config.{name} is now config.{new}")
    elif isinstance(old := _get(values, name), str) and old in _VALUES.get(name, {}):
      lines.append(f"config.{name}={old!r} is now {_VALUES[name][old]!r}")
  if lines:
    raise ValueError("fields have other names: " + "; ".join(lines))


def with_new_names(values: dict) -> dict:
  """Returns a config that was saved by an earlier version as today's would be."""
  result: dict = {}
  for name in _names(values):
    value, new = _get(values, name), _new_name(name)
    if new is not None and _is_default(name, value):
      continue
    new = new or name
    _set(result, new, _VALUES.get(new, {}).get(value, value) if isinstance(value, str) else value)
  for stage in result.get("stage", {}).values():
    _complete_mixture(stage)
  return result


def _is_default(name: str, value: Any) -> bool:
  """Says whether a field had no effect and has no successor that may be set without one."""
  return bool(
    value in (None, "", 0, 0.0, False)
    and re.fullmatch(
      r"schedule|stage\.\w+\.(start|continues|inflate\.path|num_frames|images\.share)", name
    )
  )


def _complete_mixture(stage: dict) -> None:
  """Adds to single frames, which stood beside the clips, the clips."""
  images = stage.get("mixture", {}).get("images", {})
  if "data" in images or set(images) - {"weight", "batch_size"}:
    return
  if "weight" not in images:
    stage.pop("mixture", None)
    return
  images["num_frames"] = 1
  stage["mixture"] = {"clips": {"weight": 1 - images["weight"]}, "images": images}


def _new_name(name: str) -> str | None:
  """Returns the new name of an old one; None for a name that is no old one."""
  for old, new in RENAMED.items():
    match = re.fullmatch(re.escape(old).replace(r"\*", r"(\w+)"), name)
    if match:
      return new.replace("*", match[1]) if match.groups() else new
  return None


def _names(values: dict, prefix: str = "") -> list[str]:
  """Returns the dotted names of all values; an empty section counts as one."""
  names = []
  for name, value in values.items():
    if isinstance(value, dict) and value:
      names += _names(value, f"{prefix}{name}.")
    else:
      names.append(prefix + name)
  return names


def _get(values: dict, name: str) -> Any:
  for part in name.split("."):
    values = values[part]
  return values


def _set(values: dict, name: str, value: Any) -> None:
  *sections, last = name.split(".")
  for part in sections:
    values = values.setdefault(part, {})
  values[last] = value
