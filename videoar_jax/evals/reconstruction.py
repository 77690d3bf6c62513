"""Evaluates a tokenizer: quality of reconstructions, and use of the bits."""

import dataclasses
import pathlib

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from videoar_jax.evals import fvd, i3d, metrics, scores
from videoar_jax.evals.codebook_usage import CodebookUsage
from videoar_jax.evals.media import (
  reconstruction_sheet,
  side_by_side,
  write_mp4,
  write_png,
)
from videoar_jax.interop.strict_json import write_json
from videoar_jax.tokenizers import lpips
from videoar_jax.tokenizers.base import Tokenizer

NUM_SHOWN = 4  # Clips that are kept to show.


@dataclasses.dataclass
class Reconstruction:
  """Measurements of a tokenizer.

  Attributes:
    clips, captions, decoded: the first ones, to show.
    psnr, ssim: of each clip.
    lpips: of each clip, if asked for.
    rfvd: FVD between all clips and their reconstructions, if asked for.
    real_fvd: FVD between all clips and as many other real ones, if there are enough.
    codebook_usage: see `CodebookUsage.summary`; None for a tokenizer without bits.
  """

  clips: UInt8[np.ndarray, "n f H W 3"]
  captions: list[str]
  decoded: UInt8[np.ndarray, "n f H W 3"]
  psnr: Float[np.ndarray, "b"]
  ssim: Float[np.ndarray, "b"]
  lpips: Float[np.ndarray, "b"] | None
  rfvd: float | None
  real_fvd: float | None
  codebook_usage: dict | None

  def scores(self) -> dict:
    """Returns all numbers except those of single clips; None for what was not measured."""
    rfvd = {"value": self.rfvd, "real_against_other_real_clips": self.real_fvd}
    return {
      "psnr": _spread(self.psnr, self.psnr.min()),
      "ssim": _spread(self.ssim, self.ssim.min()),
      "lpips": None if self.lpips is None else _spread(self.lpips, self.lpips.max()),
      "rfvd": None if self.rfvd is None else rfvd,
      "codebook_usage": self.codebook_usage,
    }


def _spread(values, worst) -> dict:
  return {"mean": float(values.mean()), "worst": float(worst)}


def measure(
  tokenizer: Tokenizer,
  source,
  num_clips: int,
  *,
  lpips_params: lpips.Params | None = None,
  i3d_params: i3d.Params | None = None,
  batch_size: int | None = None,
  mesh: Mesh | None = None,
) -> Reconstruction:
  """Encodes and decodes clips of a source, and measures the reconstructions.

  Clips are drawn with a fixed seed: a folder's clips are sorted by class, so its first ones would
  be of few classes, and the next ones, with which FVD compares them, of others.

  Args:
    tokenizer: to measure.
    source: of clips; FVD between real clips reads as many others.
    num_clips: number of clips, at most the size of the source.
    lpips_params, i3d_params: converted weights; without them, LPIPS or FVD is left out.
    batch_size, mesh: clips that are coded together, see `scores.code_batch`.
  Raises:
    ValueError: clips are too small or too short for the tokenizer, SSIM, LPIPS or I3D, or too few
      for FVD.
  """
  has_others = len(source) >= 2 * num_clips
  order = scores.draw(source, 2 * num_clips if has_others else num_clips)
  use, parts = CodebookUsage(), {name: [] for name in ("psnr", "ssim", "lpips", "real", "decoded")}
  shown = [], [], []
  for clips, captions in scores.batches(source, order[:num_clips], "reconstruct", batch_size):
    latents, bits, decoded = scores.code_batch(tokenizer, clips, batch_size, mesh)
    if bits is not None:
      use.add(latents, bits)
    parts["psnr"].append(metrics.psnr(clips, decoded))
    parts["ssim"].append(metrics.ssim(clips, decoded))
    if lpips_params is not None:
      parts["lpips"].append(metrics.lpips_of_clips(lpips_params, clips, decoded))
    if i3d_params is not None:
      parts["real"].append(fvd.features(i3d_params, clips))
      parts["decoded"].append(fvd.features(i3d_params, decoded))
    for kept, new in zip(shown, (clips, captions, decoded), strict=True):
      kept.extend(new[: NUM_SHOWN - len(kept)])
  values = {name: np.concatenate(each) if each else None for name, each in parts.items()}
  rfvd = real_fvd = None
  if i3d_params is not None:
    rfvd = fvd.fvd(values["real"], values["decoded"])
    if has_others:
      others = scores.batches(source, order[num_clips : 2 * num_clips], "other real clips")
      features = np.concatenate([fvd.features(i3d_params, clips) for clips, _ in others])
      real_fvd = fvd.fvd(values["real"], features)
  return Reconstruction(
    clips=np.stack(shown[0]),
    captions=shown[1],
    decoded=np.stack(shown[2]),
    psnr=values["psnr"],
    ssim=values["ssim"],
    lpips=values["lpips"],
    rfvd=rfvd,
    real_fvd=real_fvd,
    codebook_usage=None if bits is None else use.summary(),
  )


def table(result: dict) -> str:
  """Formats the contents of `reconstruction.json`."""
  data, missing = result["data"], result["not_measured"]
  lines = scores.head_lines(result)
  lines += ["", f"{'':10}{'mean':>8}{'worst clip':>14}"]
  for name, label, digits in (("psnr", "PSNR, dB", 2), ("ssim", "SSIM", 4), ("lpips", "LPIPS", 4)):
    if result[name] is None:
      lines.append(f"{label:10}  not measured: {missing[name]}")
    else:
      mean, worst = result[name]["mean"], result[name]["worst"]
      lines.append(f"{label:10}{mean:8.{digits}f}{worst:14.{digits}f}")
  lines.append(
    scores.fvd_line("rFVD".ljust(10), result["rfvd"], missing.get("rfvd"), data["num_clips"])
  )
  use = result["codebook_usage"]
  if use is None:
    return "\n".join(lines) + "\n"
  lines += ["", f"{'scale':10}{'bits that flip':>16}{'entropy, bits':>16}{'error':>12}"]
  for scale in use["scales"]:
    flipping, entropy = f"{scale['flipping']:16.1%}", f"{scale['entropy']:16.3f}"
    lines.append(f"{scale['size']:10}{flipping}{entropy}{scale['quantization_error']:12.3f}")
  lines.append(f"{'all':10}{use['flipping']:16.1%}{use['entropy']:16.3f}")
  return "\n".join(lines) + "\n"


def write(out: pathlib.Path, result: dict, measured: Reconstruction) -> list[pathlib.Path]:
  """Writes numbers, video and images atomically; returns the files."""
  out.mkdir(parents=True, exist_ok=True)
  numbers, video, sheet = (out / f"reconstruction.{end}" for end in ("json", "mp4", "png"))
  write_json(numbers, result)
  write_mp4(video, side_by_side(measured.clips, measured.decoded), result["data"]["frame_rate"])
  clips, psnr = measured.clips, measured.psnr[: len(measured.clips)]
  write_png(sheet, reconstruction_sheet(clips, measured.decoded, measured.captions, psnr))
  return [numbers, video, sheet]
