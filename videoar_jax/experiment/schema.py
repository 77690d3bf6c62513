"""What a run is: settings, checked and complete, as `config.finalize` makes them."""

import dataclasses
import functools
import itertools

from videoar_jax.data.pipeline import DataConfig
from videoar_jax.experiment.token_cache import Cache
from videoar_jax.models.videoar.layout import Layout
from videoar_jax.models.videoar.network import GeneratorConfig
from videoar_jax.models.videoar.task import GeneratorLossConfig, widest
from videoar_jax.parallel.mesh import MeshConfig
from videoar_jax.text.tokenizers import TextEncoder, make_text_encoder
from videoar_jax.tokenizers.bsq.autoencoder import AutoencoderConfig
from videoar_jax.tokenizers.bsq.inflation import InflateConfig
from videoar_jax.tokenizers.bsq.schedules import Schedule, default_schedule
from videoar_jax.tokenizers.bsq.task import TokenizerLossConfig
from videoar_jax.train.config import LoopConfig


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Prompts as tokens.

  Attributes:
    length: `P`, with the end token; 1 for classes; with features, the most of a prompt.
    attention: see `Layout`.
    tokenizer: "bytes"; "words", see `WordTokenizer`; the path of a JSON file of Hugging Face
      `tokenizers`; "classes", where a prompt is the name of one; or the path of features made
      before, see `TextFeatures`.
    classes: their names.
  """

  length: int = 64
  attention: str = "causal"
  tokenizer: str = "bytes"
  classes: tuple[str, ...] = ()

  @functools.cached_property
  def encoder(self) -> TextEncoder:
    """What turns prompts into tokens."""
    return make_text_encoder(self.tokenizer, self.length, self.classes)


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """Defaults of sampling; see `Model.sample`."""

  guidance: str = "constant:1"
  temperature: float = 1.0
  top_p: float = 1.0


@dataclasses.dataclass(frozen=True)
class ReportConfig:
  """What the closing report measures: test clips reconstructed, test prompts generated."""

  num_clips: int = 64
  num_prompts: int = 64

  def __post_init__(self):
    for name in ("num_clips", "num_prompts"):
      if getattr(self, name) < 1:
        raise ValueError(f"report.{name}={getattr(self, name)} must be at least 1")


@dataclasses.dataclass(frozen=True)
class ImagesConfig:
  """Steps on single frames among those on clips, each kind of batch in its one shape.

  Attributes:
    share: of the steps; 0 for none.
    batch_size: frames a step, over all devices.
  """

  share: float = 0.0
  batch_size: int = 1

  def __post_init__(self):
    if not 0 <= self.share < 1:
      raise ValueError(f"share={self.share} must be in [0, 1); data of images alone: num_frames=1")
    if self.batch_size < 1:
      raise ValueError(f"batch_size={self.batch_size} must be at least 1")


@dataclasses.dataclass(frozen=True)
class PartConfig:
  """A part of a stage's mixture.

  Attributes:
    name: for people.
    data: its source; `num_frames` is the smallest of those below.
    weight: share of the batches, and so of the tokens; the weights of all parts sum to 1.
    num_frames: of clips; batches take turns.
    resolutions: (H, W) in pixels; a sample has that of the nearest aspect ratio.
  """

  name: str
  data: DataConfig
  weight: float
  num_frames: tuple[int, ...]
  resolutions: tuple[tuple[int, int], ...]

  @property
  def shapes(self) -> list[tuple[int, tuple[int, int]]]:
    """(frames, (height, width)) of its clips."""
    return list(itertools.product(self.num_frames, self.resolutions))


@dataclasses.dataclass(frozen=True)
class StageConfig:
  """One stage of training.

  Attributes:
    name: of its folder in the workdir.
    kind: "tokenizer" or "generator", what is trained. It starts from the weights of the stage
      before it of the same kind, unless `inflate` names others; so does a discriminator, where it
      is the same network.
    data: the clips, which a stage may have of another length than the run's.
    loop: for how long.
    loss: on what.
    mesh: devices, which a stage may have along other axes than the run.
    inflate: the image tokenizer to start from, if any.
    images: single frames of the same data, beside the clips.
    cache: what a generator reads in place of the clips, if there is one between the tokenizer and
      it.
    start: file of weights, of `python -m videoar_jax.convert weights`, to start from, if any.
    continues: whether the optimizer goes on from the stage before it of the same kind, with the
      averaged parameters and one schedule over the steps of both; otherwise, it starts anew, from
      the averaged parameters.
    mixture: what it is trained on in place of `data` alone, which then says what a batch costs:
      `loop.batch_size` clips of it. Batches of other shapes have as many as make as many tokens.
  """

  name: str
  kind: str
  data: DataConfig
  loop: LoopConfig
  loss: TokenizerLossConfig | GeneratorLossConfig
  mesh: MeshConfig
  inflate: InflateConfig | None = None
  images: ImagesConfig = ImagesConfig()
  cache: Cache | None = None
  start: str | None = None
  continues: bool = False
  mixture: tuple[PartConfig, ...] = ()

  @property
  def source_data(self) -> list[DataConfig]:
    """What its batches are made of: the parts of its mixture, or its clips and its images."""
    data = [part.data for part in self.mixture] or [self.data]
    if self.images.share > 0:
      data.append(dataclasses.replace(self.data, num_frames=1))
    return data


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """A run, checked and complete: `stages` are those that train, `caches` those that encode."""

  seed: int
  data: DataConfig
  text: TextConfig
  tokenizer: AutoencoderConfig
  schedule: Schedule
  generator: GeneratorConfig | None
  sampling: SamplingConfig
  mesh: MeshConfig
  report: ReportConfig
  stages: tuple[StageConfig, ...]
  caches: tuple[Cache, ...] = ()

  def schedule_of(self, resolution: tuple[int, int]) -> Schedule:
    """The scales of a picture: the run's own at its resolution, else those of the public tables."""
    if tuple(resolution) == self.data.resolution:
      return self.schedule
    return default_schedule(self.tokenizer.latent_shape(1, resolution)[1:])

  def layout_of(self, data: DataConfig) -> Layout:
    """The sequence of a clip."""
    return self.layout(data.num_frames, data.resolution)

  def layouts_of(self, stage: StageConfig) -> tuple[Layout, ...]:
    """The sequences of all clips of a stage."""
    shapes = [shape for part in stage.mixture for shape in part.shapes]
    return tuple(self.layout(*shape) for shape in shapes) or (self.layout_of(stage.data),)

  @property
  def widest_layout(self) -> Layout:
    """The sequence of the most scales of all stages, by which they have one network."""
    stages = [stage for stage in self.stages if stage.kind == "generator"]
    own = [self.layout_of(stage.data) for stage in stages]
    return widest([*own, *(layout for stage in stages for layout in self.layouts_of(stage))])

  def layout(self, num_frames: int, resolution: tuple[int, int]) -> Layout:
    """The sequence of a clip of a number of frames of (H, W) pixels."""
    frames, _, _ = self.tokenizer.latent_shape(num_frames, resolution)
    generator = self.generator
    return Layout(
      self.text.length,
      frames,
      self.schedule_of(resolution),
      text_attention=self.text.attention,
      context=generator.context,
      prev_frame_input=generator.prev_frame_input,
      rope_grid=generator.rope_grid,
    )

  def batch_size_of(self, stage: StageConfig, shape: tuple[int, tuple[int, int]], ways: int) -> int:
    """The clips of a batch of one shape of a stage's mixture, of about as many tokens as others.

    Args:
      stage: with a mixture.
      shape: (frames, (height, width)).
      ways: parts that batches are split into; a batch has as many clips for each.
    """
    tokens = stage.loop.batch_size * self.layout_of(stage.data).length
    rows = tokens // self.layout(*shape).length
    return max(rows // ways, 1) * ways

  def chain(self, stage: StageConfig) -> list[StageConfig]:
    """Returns the stages that have one optimizer and one schedule with a stage, it included."""
    chains: list[list[StageConfig]] = []
    for other in self.stages:
      if other.kind == stage.kind:
        if not other.continues:
          chains.append([])
        chains[-1].append(other)
    return next(chain for chain in chains if stage in chain)

  def stage_of_kind(self, kind: str) -> StageConfig | None:
    """Returns the last stage that trains a tokenizer or a generator."""
    return next((stage for stage in reversed(self.stages) if stage.kind == kind), None)
