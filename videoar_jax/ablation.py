"""Trains the variants of a config with several seeds and compares them in one table.

  python -m videoar_jax.ablation --workdir=runs/ablation --seeds=3

Variants of one family share a tokenizer and, where the config has one, a cache of latents, so each
only trains its generator. The same command resumes after an interruption. The workdir contains:

shared/              run of the tokenizer and the cache; of several families, shared_FAMILY/
VARIANT_SEED/        run of a generator, with its scores.json
ablation.md, .json   means and standard deviations over seeds, rewritten after each run
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator

from videoar_jax.experiment.command_line import (
  Parser,
  check_local,
  load_config_file,
  print_result,
)

_ATTRIBUTES = ("size", "colour", "shape", "motion", "background", "all")
# Columns of the table: title, path in the scores, factor, digits. Without values, one is left out.
_COLUMNS = {
  "parameters": ("parameters, M", ("parameters",), 1e-6, 2),
  "processor": ("training, processor minutes", ("processor_s",), 1 / 60, 1),
  "loss": ("held-out loss", ("teacher_forced", "loss"), 1, 4),
  "bits": ("held-out bits, %", ("teacher_forced", "bit_accuracy"), 100, 2),
  **{name: (f"{name}, %", ("prompts", "generated", "all", name), 100, 0) for name in _ATTRIBUTES},
  "gfvd": ("gFVD", ("gfvd", "value"), 1, 0),
  "drift": ("drift, points", ("drift_points",), 1, 0),
  "clip": ("s a clip", ("seconds_a_clip",), 1, 3),
  "step": ("s a step", ("seconds_a_step",), 1, 3),
}


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns the exit status: 2 for user errors."""
  options = _parser().parse_args(argv)
  return print_result(lambda: _ablate(options))


def _parser() -> argparse.ArgumentParser:
  parser = Parser(prog="python -m videoar_jax.ablation", description=__doc__)
  add = parser.add_argument
  # Instead of None, which --help would show as the default.
  add("--workdir", required=True, default=argparse.SUPPRESS, help="folder for all runs")
  add("--config", default="configs/ablation.py", help="file with VARIANTS, as FILE.py:ARGUMENT")
  add("--seeds", type=int, default=3, help="runs per variant")
  add("--num_clips", type=int, default=256, help="test clips and prompts for scoring a run")
  add("--num_long_clips", type=int, default=64, help="clips of four times the length, for drift")
  return parser


def _ablate(options: argparse.Namespace) -> str:
  """Trains and scores unfinished runs; returns the table, or where it stopped.

  Raises:
    ValueError, OSError: the config or a flag is wrong, or a run belongs to another config.
  """
  check_local(options.workdir, "--workdir")
  for name in ("seeds", "num_clips", "num_long_clips"):
    if getattr(options, name) < 1:
      raise ValueError(f"--{name}={getattr(options, name)} must be at least 1")
  path, _, argument = options.config.partition(":")
  file = load_config_file(path)
  if "VARIANTS" not in file:
    raise ValueError(f"--config={path} has no VARIANTS; name a file like configs/ablation.py")
  variants = file["VARIANTS"]
  if "variant=" in argument:
    raise ValueError(f"--config={options.config}: all variants are trained; remove variant=")
  workdir = pathlib.Path(options.workdir).absolute()

  from videoar_jax.runtime.preemption import Preempted

  def config_of(variant: str):
    return file["get_config"](",".join(filter(None, (argument, f"variant={variant}"))))

  runs = {variant: [] for variant in variants}
  families = {variant: config_of(variant).family for variant in variants}
  shared = {variant: "shared" for variant in variants}
  if len(set(families.values())) > 1:
    shared = {variant: f"shared_{family}" for variant, family in families.items()}
  try:
    for folder in dict.fromkeys(shared.values()):
      first = next(variant for variant in variants if shared[variant] == folder)
      _train_shared(config_of(first), workdir / folder)
    # Seed by seed, so that variants can be compared early.
    for seed in range(options.seeds):
      for variant in variants:
        config = config_of(variant)
        config.seed = seed
        folder = workdir / f"{variant}_{seed}"
        runs[variant].append(_run(config, folder, workdir / shared[variant], options))
        _write(workdir, variants, runs)
  except Preempted as stopped:
    return f"{stopped}. The same command resumes from there."
  except KeyboardInterrupt:
    return "stopped. The same command resumes from the last checkpoint."
  return (workdir / "ablation.md").read_text()


def _train_shared(config, workdir: pathlib.Path) -> None:
  """Trains the tokenizer and, if there is a cache, encodes the clips."""
  from videoar_jax.experiment.run import Run

  shared, generators = _divide(config)
  del config.generator
  for name in generators:
    del config.stage[name]
  config.stages = shared
  Run(config, workdir).train()


def _divide(config) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Returns the stages that variants share, and those that train the generator.

  Raises:
    ValueError: there are none of a kind, or they are not in that order.
  """
  names = tuple(config.stages)
  is_generator = [config.stage[name].get("kind", name) == "generator" for name in names]
  num_shared = is_generator.index(True) if True in is_generator else len(names)
  if not 0 < num_shared < len(names) or not all(is_generator[num_shared:]):
    raise ValueError(
      f"config.stages={names} must begin with a tokenizer or a cache, and end with generators"
    )
  return names[:num_shared], names[num_shared:]


def _run(config, folder: pathlib.Path, shared: pathlib.Path, options: argparse.Namespace) -> dict:
  """Trains a generator on what is shared and scores it; returns its scores."""
  from videoar_jax.experiment.run import Run
  from videoar_jax.interop.strict_json import write_json

  folder.mkdir(parents=True, exist_ok=True)
  for stage in _divide(config)[0]:
    if config.stage[stage].get("kind", stage) == "cache":
      config.stage[stage].path = str(shared / stage)
    elif not (folder / stage).exists():
      (folder / stage).symlink_to(os.path.relpath(shared / stage, folder))
  run = Run(config, folder)
  stage = run.stages.run.stages[-1]
  first = run.stages.latest_step(stage)
  asked = {"num_clips": options.num_clips, "num_long_clips": options.num_long_clips}
  path = folder / "scores.json"
  before = json.loads(path.read_text()) if path.exists() else {}
  with processor_time(folder / "processor_s.json") as used:
    has_trained = run.train()
  if has_trained or before.get("asked") != asked:
    speed = seconds_a_step(folder / stage.name / "metrics.jsonl", first)
    before = {
      "asked": asked,
      **_score(folder, run, options),
      "processor_s": used(),
      "seconds_a_step": speed or before.get("seconds_a_step"),
    }
    write_json(path, before)
  return before


@contextlib.contextmanager
def processor_time(path: pathlib.Path) -> Iterator[Callable[[], float]]:
  """Adds this process' processor time to a file, also if it is interrupted; yields a reader.

  A run that resumes goes on counting. What a killed process used is not counted.
  """
  from videoar_jax.interop.strict_json import write_json

  def used() -> float:
    return json.loads(path.read_text()) if path.exists() else 0.0

  before, started = used(), time.process_time()
  try:
    yield used
  finally:
    write_json(path, before + time.process_time() - started)


def seconds_a_step(path: pathlib.Path, first: int) -> float | None:
  """Returns the median time of the steps after `first`, from which the run resumed.

  Args:
    path: of a stage's `metrics.jsonl`.
    first: last step that is not counted.
  Returns:
    Seconds; None without any step.
  """
  from videoar_jax.train.logging import read_metrics

  records = [record for record in read_metrics(path) if record["step"] > first]
  times = [1 / record["steps_per_s"] for record in records]
  return statistics.median(times) if times else None


def _score(folder: pathlib.Path, run, options: argparse.Namespace) -> dict:
  """Measures a trained generator on test clips."""
  from videoar_jax.evals import scores
  from videoar_jax.evals.generation import long_clips_of, measure
  from videoar_jax.evals.metric_networks import load_networks
  from videoar_jax.experiment.load import load_model
  from videoar_jax.nn.layers import count_parameters

  model, data = load_model(folder), run.stages.run.data
  num_clips = min(options.num_clips, len(run.test_source))
  # FVD needs converted weights; without them it has no column.
  networks, _ = load_networks({"i3d": "gfvd"}, data, num_clips, {})
  result = measure(
    model,
    run.test_source,
    num_clips,
    oracle=scores.oracle_of(data),
    i3d_params=networks.get("i3d"),
    long_clips=long_clips_of(model, data, options.num_long_clips),
  ).scores()
  return result | {
    "parameters": count_parameters(model.generator),
    "drift_points": drift_points(result["drift"]["accuracy"]),
  }


def drift_points(accuracy: dict[str, list[dict[str, float]]] | None) -> float | None:
  """Returns the accuracy of long clips' last window minus that of the first, in points.

  It is the mean of the oracle's accuracies except motion, which is meaningless once real objects
  leave the frame. None without an oracle.
  """
  if accuracy is None:
    return None
  names = ("size", "colour", "shape", "background")
  first, last = (
    statistics.fmean(window[name] for name in names if name in window)
    for window in (accuracy["generated"][0], accuracy["generated"][-1])
  )
  return 100 * (last - first)


def summary(runs: list[dict]) -> dict[str, dict]:
  """Returns mean and deviation (divisor n - 1; None for one run) of each column over runs."""
  result = {}
  for name, (_, place, factor, _) in _COLUMNS.items():
    values = [_look_up(run, place) for run in runs]
    values = [factor * value for value in values if value is not None]
    if values:
      deviation = statistics.stdev(values) if len(values) > 1 else None
      result[name] = {"mean": statistics.fmean(values), "deviation": deviation}
  return result


def _look_up(scores: dict, place: tuple[str, ...]) -> float | None:
  for name in place:
    scores = (scores or {}).get(name)
  return scores


def table(labels: dict[str, str], runs: dict[str, list[dict]]) -> str:
  """Returns means and deviations as Markdown, with a row for each variant that has runs.

  Args:
    labels: label of each variant.
    runs: scores of each variant's runs.
  """
  summaries = {variant: summary(runs[variant]) for variant in labels if runs[variant]}
  columns = {
    name: column
    for name, column in _COLUMNS.items()
    if any(name in values for values in summaries.values())
  }
  titles = ["variant", "seeds", *(title for title, *_ in columns.values())]
  lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
  for variant, values in summaries.items():
    cells = [_cell(values.get(name), digits) for name, (*_, digits) in columns.items()]
    lines.append(f"| {labels[variant]} | {len(runs[variant])} | {' | '.join(cells)} |")
  return "\n".join(lines)


def _cell(values: dict | None, digits: int) -> str:
  if values is None:
    return "-"
  text = f"{values['mean']:.{digits}f}"
  return text if values["deviation"] is None else f"{text} ± {values['deviation']:.{digits}f}"


_NOTE = """
Mean ± standard deviation over seeds. Loss and bits are teacher-forced, on real test clips; the loss
is in nats a bit, or NOVA's squared error of what its diffusion head predicts. The
oracle's accuracies are the shares of generated clips that show what their prompts ask for; "all"
means every attribute at once. Drift is the accuracy of size, colour, shape and background in the
last quarter of clips of four times the length, minus that in the first. Training is that of the
generator, with compilation. Seconds a step are a median; seconds a clip are those of a full batch.
"""


def _write(workdir: pathlib.Path, labels: dict[str, str], runs: dict[str, list[dict]]) -> None:
  """Writes the table and the scores of all runs so far."""
  from videoar_jax.interop.atomic import write_text
  from videoar_jax.interop.strict_json import write_json

  variants = {
    name: {"label": label, "summary": summary(runs[name]), "runs": runs[name]}
    for name, label in labels.items()
  }
  write_json(workdir / "ablation.json", variants)
  write_text(workdir / "ablation.md", f"# Ablation\n\n{table(labels, runs)}\n{_NOTE}")


if __name__ == "__main__":
  sys.exit(main())
