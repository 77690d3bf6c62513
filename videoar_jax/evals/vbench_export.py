"""Makes the clips of a VBench folder with a model; see `vbench`."""

import pathlib
import time
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from videoar_jax.data.sources.media_files import mark_output
from videoar_jax.evals import vbench
from videoar_jax.evals.media import write_mp4
from videoar_jax.evals.vbench import Clip
from videoar_jax.interop.atomic import remove_partials
from videoar_jax.interop.strict_json import write_json
from videoar_jax.parallel import processes


def export(
  model,
  clips: list[Clip],
  out: pathlib.Path,
  frame_rate: float,
  facts: dict[str, Any],
  *,
  seed: int = 0,
  is_shared: bool = False,
) -> float | None:
  """Makes the clips that a folder lacks; all processes must call this.

  Args:
    model: makes clips of its trained length.
    clips: all that VBench wants.
    out: the suite's folder, in a file system that all processes see.
    frame_rate: of the clips.
    facts: all that clips depend on, as JSON.
    seed: of the clips.
    is_shared: whether the model's devices are those of all processes, which then make each batch
      together; else each process makes batches of its own.
  Returns:
    Seconds a clip in the batches of this process after its first, which compiles; None if it made
    fewer than two.
  Raises:
    ValueError: a prompt is too long, the folder has something else, or clips are missing at the
      end.
    OSError: a file cannot be written.
  """
  for prompt in dict.fromkeys(clip.prompt for clip in clips):
    model.text_encoder.encode(prompt)  # Raises before the first clip is made.
  folder = out / vbench.VIDEOS

  def prepare():
    if processes.is_first():
      mark_output(out, [vbench.VIDEOS, vbench.MANIFEST])  # Clips there are no data.
      folder.mkdir(exist_ok=True)
      remove_partials(folder)  # Of a run that was killed.
      vbench.check_folder(folder, clips)
      vbench.start_manifest(out, facts, clips)

  processes.try_in_all(prepare)
  missing = vbench.check_folder(folder, clips)
  processes.wait_for_all("which clips are missing is known")
  size, rank, count = model.batch_size, jax.process_index(), jax.process_count()
  batches = [missing[i : i + size] for i in range(0, len(missing), size)]
  seconds = []
  total = len(missing) if is_shared else sum(map(len, batches[rank::count]))
  with tqdm(total=total, desc="VBench", unit="clip", disable=None) as bar:
    for number, batch in enumerate(batches):
      if not is_shared and number % count != rank:
        continue
      full = batch + [batch[-1]] * (size - len(batch))  # All share one compiled program.
      started = time.perf_counter()
      made = model.sample(
        [clip.prompt for clip in full], None, seed, sample_ids=[clip.sample_id for clip in full]
      )
      seconds.append((time.perf_counter() - started) / size)
      if number % count == rank:
        for clip, video in zip(batch, np.asarray(made), strict=False):
          write_mp4(folder / clip.file, video, frame_rate)
      bar.update(len(batch))
  processes.wait_for_all("the clips are written")
  lacking = vbench.check_folder(folder, clips)
  if lacking:
    raise ValueError(
      f"{folder} lacks {len(lacking)} of {len(clips)} clips, such as {lacking[0].file!r}; run the "
      "same command again, and check that all processes see this folder"
    )
  return float(np.mean(seconds[1:])) if len(seconds) > 1 else None


def write_cost(out: pathlib.Path, cost: dict | None) -> list[pathlib.Path]:
  """Writes what the clips cost, if it was measured; returns their folder."""
  if cost is not None:
    write_json(out / vbench.COST, cost)
  return [out / vbench.VIDEOS]
