"""What a run is: settings, checked and complete, as `config.finalize` makes them."""

import dataclasses
import functools
import itertools
import math
from typing import Any

from videoar_jax.data.pipeline import DataConfig
from videoar_jax.experiment.token_cache import Cache
from videoar_jax.models.base import ClipShape, Family
from videoar_jax.parallel.mesh import MeshConfig
from videoar_jax.text.tokenizers import TextEncoder, make_text_encoder
from videoar_jax.tokenizers.base import TokenizerConfig, TokenizerFamily
from videoar_jax.tokenizers.families import TOKENIZERS
from videoar_jax.train.config import LoopConfig


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Prompts as tokens.

  Attributes:
    length: `P`, with the end token; 1 for classes; with features, the most of a prompt.
    attention: "causal", or "full" for text that sees all of itself.
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
class ReportConfig:
  """What the closing report measures: test clips reconstructed, test prompts generated."""

  num_clips: int = 64
  num_prompts: int = 64

  def __post_init__(self):
    for name in ("num_clips", "num_prompts"):
      if getattr(self, name) < 1:
        raise ValueError(f"report.{name}={getattr(self, name)} must be at least 1")


@dataclasses.dataclass(frozen=True)
class InitConfig:
  """What a stage starts from.

  Attributes:
    from_: a file of weights that `python -m videoar_jax.convert weights` made, or the folder of a
      converted image tokenizer, which is inflated over time; None for the (averaged) weights of the
      stage before it of the same kind, or random ones where there is none.
    with_optimizer: continue the optimizer of the stage before it of the same kind, too, with the
      averaged parameters and one schedule over the steps of both; otherwise it starts afresh, from
      the averaged parameters.
    temporal: what the taps of earlier frames start with where an image tokenizer is inflated,
      "zeros" or "random" (the paper's).
  """

  from_: str | None = None
  with_optimizer: bool = False
  temporal: str = "zeros"

  def __post_init__(self):
    if self.temporal not in ("zeros", "random"):
      raise ValueError(f"temporal={self.temporal!r} is unknown; use 'zeros' or 'random'")
    if self.from_ and self.with_optimizer:
      raise ValueError(
        f"from={self.from_} and with_optimizer exclude each other: a file has no optimizer; remove "
        "one"
      )


@dataclasses.dataclass(frozen=True)
class PartConfig:
  """A part of a stage's mixture.

  Attributes:
    name: for people.
    data: its source; `num_frames` is the smallest of those below.
    weight: share of the batches, and so of the tokens; the weights of all parts sum to 1.
    batch_size: clips of a batch, over all devices; None for as many as make as many tokens as
      `loop.batch_size` clips of the stage's `data`.
    num_frames: of clips; batches take turns.
    resolutions: (H, W) in pixels; a sample has that of the nearest aspect ratio.
  """

  name: str
  data: DataConfig
  weight: float
  num_frames: tuple[int, ...]
  resolutions: tuple[tuple[int, int], ...]
  batch_size: int | None = None

  @property
  def shapes(self) -> list[ClipShape]:
    """Those of its clips."""
    return list(itertools.starmap(ClipShape, itertools.product(self.num_frames, self.resolutions)))


@dataclasses.dataclass(frozen=True)
class StageConfig:
  """One stage of training.

  Attributes:
    name: of its folder in the workdir.
    kind: "tokenizer" or "generator", what is trained. It starts from the weights of the stage
      before it of the same kind, unless `init` says otherwise; so does a discriminator, where it is
      the same network.
    data: the clips, which a stage may have of another length than the run's.
    loop: for how long.
    loss: on what.
    mesh: devices, which a stage may have along other axes than the run.
    init: what it starts from.
    cache: what a generator reads in place of the clips, if there is one between the tokenizer and
      it.
    mixture: what it is trained on in place of `data` alone, which then says what a batch costs:
      `loop.batch_size` clips of it. Batches of other shapes have as many as make as many tokens.
  """

  name: str
  kind: str
  data: DataConfig
  loop: LoopConfig
  loss: Any
  mesh: MeshConfig
  init: InitConfig = InitConfig()
  cache: Cache | None = None
  mixture: tuple[PartConfig, ...] = ()

  @property
  def shapes(self) -> tuple[ClipShape, ...]:
    """Those of its clips."""
    shapes = [shape for part in self.mixture for shape in part.shapes]
    return tuple(shapes) or (ClipShape(self.data.num_frames, self.data.resolution),)

  @property
  def source_data(self) -> list[DataConfig]:
    """What its batches are made of: the parts of its mixture, or its clips."""
    return [part.data for part in self.mixture] or [self.data]


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """A run, checked and complete: `stages` are those that train, `caches` those that encode.

  Attributes:
    seed: of all that is drawn.
    family: of the generator.
    data: clips.
    text: prompts.
    tokenizer: of the tokenizer family's `network`.
    generator: of the family's `network`; None where no stage trains one.
    sampling: of the family's `sampling`.
    mesh: devices.
    report: what the closing report measures.
    stages: those that train.
    caches: those that encode.
  """

  seed: int
  family: Family
  data: DataConfig
  text: TextConfig
  tokenizer: TokenizerConfig
  generator: Any
  sampling: Any
  mesh: MeshConfig
  report: ReportConfig
  stages: tuple[StageConfig, ...]
  caches: tuple[Cache, ...] = ()

  @property
  def tokenizer_family(self) -> TokenizerFamily:
    """The family of its tokenizer."""
    return TOKENIZERS[self.family.tokenizer]

  @property
  def generator_stages(self) -> tuple[StageConfig, ...]:
    """The stages that train the generator."""
    return tuple(stage for stage in self.stages if stage.kind == "generator")

  def num_tokens(self, stage: StageConfig, shape: ClipShape) -> int:
    """Returns what a clip costs a stage: tokens of a generator, latent cells of a tokenizer."""
    if stage.kind == "generator":
      return self.family.num_tokens(self, shape)
    return math.prod(self.tokenizer.latent_shape(*shape))

  def batch_size_of(
    self, stage: StageConfig, part: PartConfig, shape: ClipShape, num_shards: int
  ) -> int:
    """Returns the clips of a batch of one shape of a mixture, of about as many tokens as others.

    Args:
      stage: with the mixture.
      part: of it; one with a batch size of its own keeps that.
      shape: of the clips.
      num_shards: parts that batches are split into; a batch has as many clips for each.
    """
    if part.batch_size is not None:
      return part.batch_size
    own = ClipShape(stage.data.num_frames, stage.data.resolution)
    tokens = stage.loop.batch_size * self.num_tokens(stage, own)
    rows = tokens // self.num_tokens(stage, shape)
    return max(rows // num_shards, 1) * num_shards

  def chain(self, stage: StageConfig) -> list[StageConfig]:
    """Returns the stages that have one optimizer and one schedule with a stage, it included."""
    chains: list[list[StageConfig]] = []
    for other in self.stages:
      if other.kind == stage.kind:
        if not other.init.with_optimizer:
          chains.append([])
        chains[-1].append(other)
    return next(chain for chain in chains if stage in chain)
