"""A run as it trains, or has trained: progress of its stages, curves, samples by step, report."""

import dataclasses
import hashlib
import html
import pathlib
import re
import struct
import tempfile
import threading
import time
from collections.abc import Iterator

from tensorboardX.proto.event_pb2 import Event

from videoar_jax.evals.curves import TOKENIZER_CURVES, draw_curves
from videoar_jax.experiment.schema import RunConfig
from videoar_jax.train.logging import read_metrics

_MAX_STEPS = 6  # Of which a stage's samples are shown: evenly spaced, the newest included.
_LIVE_S = 60.0  # A run whose numbers are older has stopped.
_PICTURE = re.compile(r"!\[([^\]]*)\]\((report/[\w.]+)\)")
# What the page serves of a workdir.
PICTURES = {
  "report/curves.png": "image/png",
  "report/reconstructions.png": "image/png",
  "report/samples.png": "image/png",
  "report/samples.webp": "image/webp",
}


@dataclasses.dataclass(frozen=True)
class Sample:
  """Clips that a stage made while it trained.

  Attributes:
    stage, tag, step: of which stage, what they are, and when they were made.
    gif: the moving picture.
  """

  stage: str
  tag: str
  step: int
  gif: bytes

  @property
  def name(self) -> str:
    """A name that changes with the picture."""
    return hashlib.sha256(self.gif).hexdigest()[:20]


class RunView:
  """Reads a workdir again and again, which another process may write to.

  Args:
    workdir: of the run.
    run: its config.
  """

  def __init__(self, workdir: pathlib.Path, run: RunConfig):
    self.workdir, self.run = workdir, run
    self._lock = threading.Lock()
    self._records: dict[str, tuple[tuple, list[dict]]] = {}
    self._samples: dict[pathlib.Path, tuple[tuple, list[Sample]]] = {}
    self._curves: tuple[str, bytes] = ("", b"")

  def fingerprint(self) -> str:
    """Returns a text that changes when anything that the page shows does."""
    files = [self.workdir / "report.md", *(self.workdir / name for name in PICTURES)]
    for stage in self.run.stages:
      files += [self._metrics(stage.name), *self._events(stage.name)]
    live = [self._is_live(stage.name) for stage in self.run.stages]
    return hashlib.sha256(repr((live, [_stamp(file) for file in files])).encode()).hexdigest()

  def html(self) -> str:
    """Returns the stages' progress, curves and samples."""
    records = {stage.name: self._read(stage.name) for stage in self.run.stages}
    rows = [self._stage_row(stage, records[stage.name]) for stage in self.run.stages]
    curves, figures = "", []
    if any(records.values()):
      source = f"run/curves.png?v={self.fingerprint()[:12]}"
      curves = f'<h3>Curves</h3><img class="curves" src="{source}" alt="Loss and quality by step">'
    for (stage, tag), samples in self._shown_samples().items():
      pictures = "".join(
        f'<figure><img src="run/samples/{sample.name}.gif" alt=""><figcaption>step {sample.step:,}'
        "</figcaption></figure>"
        for sample in samples
      )
      title = html.escape(f"{stage}: {tag.replace('_', ' ')}")
      figures.append(f'<div class="byStep"><h4>{title}</h4><div>{pictures}</div></div>')
    if figures:
      figures.insert(0, "<h3>Samples by step</h3>")
    return (
      f'<div class="run"><div class="stages">{"".join(rows)}</div><div class="columns">'
      f"<div>{curves}</div><div>{''.join(figures)}</div></div></div>"
    )

  def report(self) -> str:
    """Returns the report as Markdown, with pictures that the page serves."""
    path = self.workdir / "report.md"
    if not path.is_file():
      return "The report is written when the last stage ends."
    text = path.read_text()

    def serve(found: re.Match) -> str:
      version = _stamp(self.workdir / found[2])
      return f"![{found[1]}](run/{found[2]}?v={hash(version) & 0xFFFFFFFF:x})"

    # The page has a title of its own.
    return _PICTURE.sub(serve, text.partition("\n")[2].strip())

  def curves_png(self) -> bytes:
    """Returns the curves so far; drawn only if there are new numbers."""
    with self._lock:
      version = self.fingerprint()
      if self._curves[0] != version:
        histories = [
          (
            stage.name,
            TOKENIZER_CURVES if stage.kind == "tokenizer" else self.run.family.curves(self.run),
            records,
          )
          for stage in self.run.stages
          if (records := self._read(stage.name))
        ]
        with tempfile.TemporaryDirectory() as folder:
          path = pathlib.Path(folder) / "curves.png"
          draw_curves(path, histories)
          self._curves = (version, path.read_bytes())
      return self._curves[1]

  def sample_gif(self, name: str) -> bytes | None:
    """Returns the picture of a sample; None if there is none of that name."""
    samples = (sample for stage in self.run.stages for sample in self._stage_samples(stage.name))
    return next((sample.gif for sample in samples if sample.name == name), None)

  def _metrics(self, stage: str) -> pathlib.Path:
    return self.workdir / stage / "metrics.jsonl"

  def _events(self, stage: str) -> list[pathlib.Path]:
    return sorted((self.workdir / stage / "tensorboard").glob("events.out.tfevents.*"))

  def _is_live(self, stage: str) -> bool:
    path = self._metrics(stage)
    return path.is_file() and time.time() - path.stat().st_mtime < _LIVE_S

  def _read(self, stage: str) -> list[dict]:
    """Returns the records of a stage's metrics."""
    stamp = _stamp(self._metrics(stage))
    if self._records.get(stage, (None,))[0] != stamp:
      self._records[stage] = (stamp, read_metrics(self._metrics(stage)))
    return self._records[stage][1]

  def _stage_row(self, stage, records: list[dict]) -> str:
    total = stage.loop.num_steps
    step = records[-1]["step"] if records else 0
    is_done = step >= total
    is_live = self._is_live(stage.name) and not is_done
    facts = []
    if records:
      last = [record["loss"] for record in records[-20:] if record.get("loss") is not None]
      facts += [f"loss {sum(last) / len(last):.4f}"] if last else []
      rate = records[-1].get("steps_per_s")
      if is_live and rate:
        facts += [f"{rate:.1f} steps/s", f"{_duration((total - step) / rate)} left"]
      elif not is_done:
        facts.append("stopped")
    state = "done" if is_done else "live" if is_live else "idle"
    return (
      f'<div class="stageRow {state}"><b>{html.escape(stage.name)}</b>'
      f'<span class="bar"><i style="width:{100 * min(1, step / max(1, total)):.1f}%"></i></span>'
      f"<span>{step:,} of {total:,}</span><span>{' · '.join(facts)}</span></div>"
    )

  def _stage_samples(self, stage: str) -> list[Sample]:
    """Returns what a stage has recorded; of repeated steps the last."""
    found: dict[tuple[str, int], Sample] = {}
    for path in self._events(stage):
      stamp = _stamp(path)
      if self._samples.get(path, (None,))[0] != stamp:
        self._samples[path] = (stamp, list(_read_samples(path, stage)))
      found |= {(sample.tag, sample.step): sample for sample in self._samples[path][1]}
    return list(found.values())

  def _shown_samples(self) -> dict[tuple[str, str], list[Sample]]:
    """Returns the samples to show by stage and tag, the last stage first."""
    shown: dict[tuple[str, str], list[Sample]] = {}
    for stage in reversed(self.run.stages):
      for sample in sorted(self._stage_samples(stage.name), key=lambda sample: sample.step):
        shown.setdefault((stage.name, sample.tag), []).append(sample)
    for key, samples in shown.items():
      num = len(samples)
      places = {round(i * (num - 1) / max(1, _MAX_STEPS - 1)) for i in range(_MAX_STEPS)}
      shown[key] = [samples[i] for i in sorted(places) if i < num]
    return shown


def _read_samples(path: pathlib.Path, stage: str) -> Iterator[Sample]:
  """Yields the moving pictures of a file of TensorBoard events; one that is being written, too.

  Source: TFRecord, a length of 8 bytes and its checksum of 4, then the event and its checksum of 4.
  """
  with path.open("rb") as file:
    while len(head := file.read(12)) == 12:
      (length,) = struct.unpack("<Q", head[:8])
      data = file.read(length)
      if len(data) < length or len(file.read(4)) < 4:
        return
      event = Event.FromString(data)
      for value in event.summary.value:
        if value.HasField("image"):
          yield Sample(stage, value.tag, event.step, value.image.encoded_image_string)


def _stamp(path: pathlib.Path) -> tuple:
  """Returns what changes with a file."""
  try:
    found = path.stat()
  except OSError:
    return (str(path), None)
  return (str(path), found.st_mtime_ns, found.st_size)


def _duration(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours} h {minutes} min"
  return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
