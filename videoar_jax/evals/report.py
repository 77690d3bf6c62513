"""The final report of a run: scores, images, and a page that shows them.

report.md                    the page
scores.json                  every number, unrounded
report/curves.png            loss and quality by step
report/reconstructions.png   test clips and their reconstructions
report/samples.png           generated clips, frame by frame, and reconstructed real ones
report/samples.webp          the same generated clips as a moving picture
samples/*.mp4                the same as videos
"""

import os
import pathlib
import resource
import shlex
import sys

import numpy as np

from videoar_jax.data.sources.base import EncodedSource
from videoar_jax.evals import metrics, scores
from videoar_jax.evals.curves import TOKENIZER_CURVES, draw_curves
from videoar_jax.evals.media import (
  contact_sheet,
  moving_sheet,
  reconstruction_sheet,
  slug,
  write_mp4,
  write_png,
  write_webp,
)
from videoar_jax.experiment.load import load_model, load_tokenizer
from videoar_jax.experiment.schema import RunConfig
from videoar_jax.experiment.stages import Stages
from videoar_jax.interop.atomic import write_text
from videoar_jax.interop.strict_json import write_json
from videoar_jax.nn.layers import count_parameters
from videoar_jax.train.logging import read_metrics

NUM_SHOWN = 8  # Samples that become mp4 files and rows of the image.
NUM_RECONSTRUCTIONS_SHOWN = 4
NUM_REAL_SHOWN = 3  # Real clips below the samples.
MAX_SKIPPED_SHOWN = 20  # Lines of skipped files on the page; scores.json has all.
FAR_PSNR, FAR_SHARE = 1.0, 0.1  # Below the lowest of earlier runs, in dB and as a share.
FAR_PROMPTS = 64  # Fewer prompts do not determine a share well enough.
LAST_SHARE = 0.05  # A stage's final metrics are means over this share of its last steps.


def write_report(
  workdir: pathlib.Path,
  run: RunConfig,
  stages: Stages,
  train_source,
  test_source,
  *,
  seconds: float | None = None,
) -> dict:
  """Scores a trained run and writes its report.

  Args:
    workdir: of the run; files are written atomically.
    run: the run.
    stages: its stages, each with a checkpoint.
    train_source: training clips; only the list of skipped files is read.
    test_source: clips to reconstruct, and prompts to generate from.
    seconds: duration of the run, if known.
  Returns:
    The scores, as in `scores.json`.
  """
  clips, captions = _examples(run, test_source)
  settings = run.report
  reconstructions = scores.reconstruct(load_tokenizer(workdir), clips, settings.batch_size)
  num_clips = min(run.report.num_clips, len(clips))
  psnr = metrics.psnr(clips[:num_clips], reconstructions[:num_clips])
  prompts = _prompts(run, captions)
  generated = None
  if run.generator_stages and prompts:
    model = load_model(
      workdir, mesh=settings.devices(), dtype=settings.dtype, batch_size=settings.batch_size
    )
    generated = model.sample(prompts)

  result = {
    "stages": {stage.name: _stage_facts(workdir, stages, stage) for stage in run.stages},
    "reconstruction": {
      "psnr": {"mean": float(psnr.mean()), "min": float(psnr.min()), "count": len(psnr)}
    },
    "data": _data_facts(run, train_source, test_source),
    "resources": {"seconds": seconds, "peak_memory_bytes": _peak_memory_bytes()},
  }
  matches = None
  oracle = scores.oracle_of(run.data)
  if oracle is not None and prompts:
    n = len(prompts)
    shown = {"reconstructed": reconstructions[:n], "real": clips[:n]}
    if generated is not None:
      shown = {"generated": generated} | shown
    matches = {name: oracle.matches(c, prompts) for name, c in shown.items()}
    result["prompts"] = _prompt_scores(run, prompts, matches)

  folder = workdir / "report"
  folder.mkdir(exist_ok=True)
  histories = [
    (
      stage.name,
      TOKENIZER_CURVES if stage.kind == "tokenizer" else run.family.curves(run),
      read_metrics(_metrics_path(workdir, stage)),
    )
    for stage in run.stages
  ]
  draw_curves(folder / "curves.png", histories)
  k = min(NUM_RECONSTRUCTIONS_SHOWN, num_clips)
  sheet = reconstruction_sheet(clips[:k], reconstructions[:k], captions[:k], psnr[:k])
  write_png(folder / "reconstructions.png", sheet)
  if generated is not None:
    _write_samples(workdir, run, generated[:NUM_SHOWN], prompts, reconstructions, captions)
  write_json(workdir / "scores.json", result)
  write_text(workdir / "report.md", _page(workdir, run, result, prompts))
  return result


def _examples(run: RunConfig, source) -> tuple[np.ndarray, list[str]]:
  """Returns test clips and their captions, as many as the largest score needs.

  They are drawn at random: a folder's first ones would be of few classes. Captions are valid
  prompts.
  """
  source = EncodedSource(source, run.text.encoder.encode)
  order = scores.draw(source, max(run.report.num_clips, run.report.num_prompts))
  items = [source[i] for i in order]
  return np.stack([item["video"] for item in items]), [item["caption"] for item in items]


def _prompts(run: RunConfig, captions: list[str]) -> list[str]:
  """Returns the prompts: of sprites for the oracle's accuracy, of other data to show samples."""
  if run.data.source == "sprites":
    return captions[: run.report.num_prompts]
  # Many files of a folder may share a caption.
  return list(dict.fromkeys(captions))[: min(NUM_SHOWN, run.report.num_prompts)]


def _metrics_path(workdir: pathlib.Path, stage) -> pathlib.Path:
  return workdir / stage.name / "metrics.jsonl"


def _stage_facts(workdir: pathlib.Path, stages: Stages, stage) -> dict:
  """Returns a stage's settings, its step, and its metrics averaged over the last steps."""
  records = read_metrics(_metrics_path(workdir, stage))
  last = records[-max(1, round(LAST_SHARE * len(records))) :]
  found: dict[str, list[float]] = {}
  for record in last:
    for name, value in record.items():
      found.setdefault(name, []).extend([] if value is None else [value])
  return {
    "kind": stage.kind,
    "parameters": count_parameters(stages.module_template(stage).shapes),
    "steps": stages.latest_step(stage),
    "num_steps": stage.loop.num_steps,
    "batch_size": stage.loop.batch_size,
    "num_frames": stage.data.num_frames,
    "last": {n: float(np.mean(x)) for n, x in found.items() if n != "step" and x},
  }


def _data_facts(run: RunConfig, train_source, test_source) -> dict:
  facts = {"source": run.data.source, "has_test_split": True}
  if run.data.source != "sprites":
    # Both splits probe the whole folder; later, a file may fail in only one of them.
    skipped = dict([*train_source.skipped, *test_source.skipped])
    facts |= {
      "path": train_source.bad_samples.source,
      "has_test_split": train_source.has_test_split,
      "num_train_files": len(train_source.files),
      "num_test_files": len(test_source.files),
      "skipped": [{"file": file, "reason": skipped[file]} for file in sorted(skipped)],
      "num_cut_captions": len(train_source.cut_captions.files | test_source.cut_captions.files),
    }
  return facts


def _peak_memory_bytes() -> int:
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB.


def _prompt_scores(run: RunConfig, prompts: list[str], matches: dict[str, list[dict]]) -> dict:
  """Returns accuracy by attribute and kind of clip, for all prompts, seen and held-out ones."""
  result = scores.accuracy_by_novelty(prompts, matches)
  # The chance level is for one object; two have to be correct together.
  return result | ({"chance": scores.CHANCE} if run.data.num_objects == 1 else {})


def _write_samples(workdir: pathlib.Path, run: RunConfig, clips, prompts, real, captions) -> None:
  """Writes generated clips as mp4, and as images that say what the oracle reads in them.

  Args:
    workdir: of the run.
    run: the run.
    clips: generated.
    prompts: of the clips.
    real: reconstructed test clips, of which the image shows a few: what the generator learns from.
    captions: of the test clips.
  """
  folder = workdir / "samples"
  folder.mkdir(exist_ok=True)
  prompts, oracle = prompts[: len(clips)], scores.oracle_of(run.data)
  for i, (clip, prompt) in enumerate(zip(clips, prompts, strict=True)):
    write_mp4(folder / f"{i:02d}_{slug(prompt)}.mp4", clip, run.data.frame_rate)
  notes = [[]] * len(clips)
  if oracle is not None:
    pairs = zip(clips, prompts, strict=True)
    notes = [[("read from its pixels:", True), *oracle.reading(*pair)] for pair in pairs]
  frames = moving_sheet(clips, prompts, [note and [("→", True), *note[1:]] for note in notes])
  write_webp(workdir / "report" / "samples.webp", frames, run.data.frame_rate)
  # The last stage may have clips of another shape than the run.
  k = min(NUM_REAL_SHOWN, len(real)) if real.shape[1:] == clips.shape[1:] else 0
  rows = np.concatenate([clips, real[:k]]) if k else clips
  lines = prompts + [f"reconstructed real clip: {caption}" for caption in captions[:k]]
  sheet = contact_sheet(rows, lines, notes=notes + [[]] * k)
  write_png(workdir / "report" / "samples.png", sheet)


def _page(workdir: pathlib.Path, run: RunConfig, result: dict, prompts: list[str]) -> str:
  parts = [f"# {workdir.name}", _summary(run, result), *_shortfalls(run, result)]
  if run.generator_stages and prompts:
    parts += ["## Samples", "![Samples, as they move](report/samples.webp)"]
    parts += ["![Samples, a row each](report/samples.png)"]
    parts += [_sampling_command(workdir, prompts[0])]
  if "prompts" in result:
    title = "Do clips show what the prompt asks for?"
    if not run.generator_stages:
      title = "Do reconstructions show what the caption says?"
    parts += [f"## {title}", _prompt_table(result["prompts"])]
  psnr = result["reconstruction"]["psnr"]
  parts += [
    "## Reconstruction",
    f"{psnr['count']} test clips through the tokenizer: PSNR {psnr['mean']:.2f} dB on average, "
    f"{psnr['min']:.2f} dB at worst.",
    "![Originals above their reconstructions](report/reconstructions.png)",
    "## Training",
    _stage_table(result["stages"], run.family.headline),
    "![Loss and quality by step](report/curves.png)",
  ]
  if run.data.source != "sprites":
    parts += ["## Data", _data_text(result["data"])]
  return "\n\n".join(parts) + "\n"


def _summary(run: RunConfig, result: dict) -> str:
  height, width = run.data.resolution
  what = result["data"].get("path", "moving sprites")
  text = (
    f"Clips: {run.data.num_frames} frames of {height}x{width} pixels, "
    f"{run.data.frame_rate:g} a second, of {what}."
  )
  seconds, peak = result["resources"].values()
  if seconds is not None:
    text += f" This run took {_duration(seconds)}."
  return f"{text} Peak memory: {peak / 2**30:.1f} GiB."


def _shortfalls(run: RunConfig, result: dict) -> list[str]:
  """Returns a note for each score that is far below what earlier runs of the config had."""
  psnr, everything = run.report.expected_psnr, run.report.expected_all
  found: list[str] = []
  if run.data.source != "sprites":
    return found
  if psnr is not None:
    own = result["reconstruction"]["psnr"]["mean"]
    if own < psnr[0] - FAR_PSNR:
      found.append(
        f"reconstructions have {own:.1f} dB, where earlier runs had {psnr[0]:.1f} to {psnr[1]:.1f}"
      )
  generated = result.get("prompts", {}).get("generated")
  if everything is not None and generated is not None:
    own = generated["all"]["all"]
    if own < everything[0] - FAR_SHARE and result["prompts"]["count"]["all"] >= FAR_PROMPTS:
      low, high = everything
      found.append(
        f"{own:.0%} of the generated clips are right in everything, where earlier runs had "
        f"{low:.0%} to {high:.0%}"
      )
  return [
    f"**Note:** {text}. If nothing but the seed was changed, something went wrong in training."
    for text in found
  ]


def _duration(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  parts = ((hours, "h"), (minutes, "min"), (seconds, "s"))
  return " ".join(f"{value} {unit}" for value, unit in parts if value) or "0 s"


def _sampling_command(workdir: pathlib.Path, prompt: str) -> str:
  place = pathlib.Path(os.path.relpath(workdir))
  place = workdir if place.parts[:1] == ("..",) else place
  return (
    "The clips are in `samples/`. For more:\n\n"
    f"```\npython -m videoar_jax.sample --workdir={shlex.quote(str(place))} \\\n"
    f"  --prompt={shlex.quote(prompt)} --num_samples=4 --out=more\n```"
  )


def _prompt_table(prompts: dict) -> str:
  """Formats the accuracies in per cent."""
  columns, count = scores.ATTRIBUTES, prompts["count"]
  rows = ["| % correct | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
  for label, values in scores.prompt_rows(prompts):
    cells = [f"{100 * values[c]:.0f}" if c in values else "" for c in columns]
    label = f"**{label}**" if label == "generated" else label
    rows.append(f"| {label} | " + " | ".join(cells) + " |")
  text = f"{count['all']} test prompts. A program reads attributes from the pixels of each clip."
  if "generated" in prompts:
    text += " Reconstructed and real clips of the same prompts are the upper bound."
  return text + "\n\n" + "\n".join(rows)


def _stage_table(stages: dict, headline: dict[str, str]) -> str:
  rows = ["| stage | parameters | steps | clips a step | at the end |", "|---|---|---|---|---|"]
  for name, facts in stages.items():
    last = facts["last"]
    labels = {"loss": "loss {:.4f}", "psnr": "PSNR {:.2f} dB"} | headline
    labels["eval/loss"] = "held-out loss {:.4f}"
    end = ", ".join(text.format(last[name]) for name, text in labels.items() if name in last)
    steps = f"{facts['steps']}"
    steps += "" if facts["steps"] >= facts["num_steps"] else f" of {facts['num_steps']}"
    clips = f"{facts['batch_size']} of {facts['num_frames']} frames"
    rows.append(f"| {name} | {facts['parameters']:,} | {steps} | {clips} | {end or '-'} |")
  return "\n".join(rows)


def _data_text(data: dict) -> str:
  if data["has_test_split"]:
    text = f"{data['num_train_files']} videos to train on, {data['num_test_files']} to test on."
  else:
    text = (
      f"{data['num_train_files']} videos and no test split, since they are too few or none of the "
      "test videos can be used: the test clips above were trained on, too."
    )
  if data["num_cut_captions"]:
    text += f" {data['num_cut_captions']} have captions that were cut to text.length."
  skipped = data["skipped"]
  if not skipped:
    return f"{text} None was skipped."
  lines = [f"- `{entry['file']}`: {entry['reason']}" for entry in skipped[:MAX_SKIPPED_SHOWN]]
  if len(skipped) > MAX_SKIPPED_SHOWN:
    lines.append(f"- and {len(skipped) - MAX_SKIPPED_SHOWN} more, see `scores.json`")
  return f"{text} Skipped: {len(skipped)}.\n\n" + "\n".join(lines)
