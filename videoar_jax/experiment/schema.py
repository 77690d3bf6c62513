"""The settings of a run, checked and complete, as `parse.finalize` returns them."""

import dataclasses
import functools
import itertools
import math
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh

from videoar_jax.data.pipeline import DataConfig
from videoar_jax.experiment.token_cache import Cache
from videoar_jax.models.base import ClipShape, Family
from videoar_jax.parallel.mesh import MeshConfig, make_mesh, num_batch_shards, parse_mesh
from videoar_jax.text.tokenizers import TextEncoder, make_text_encoder
from videoar_jax.tokenizers.base import TokenizerConfig, TokenizerFamily
from videoar_jax.train.config import LoopConfig


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Prompts as tokens or features.

  Attributes:
    length: tokens of a prompt, including the end token: shorter prompts are padded, longer ones are
      an error. 1 for classes; with features, the maximum number of features of a prompt; a
      pretrained encoder cuts longer prompts.
    attention: "causal", or "full": bidirectional attention within the prompt.
    tokenizer: "bytes" (UTF-8); "words" (hashed; for short captions); "classes": a prompt is the
      name of a class; the path of a JSON file of Hugging Face `tokenizers`; the path of a file of
      features from a text encoder; or that of the folder of a pretrained T5, umT5 or Phi-2. Paths
      may be on the hub (`hf://OWNER/NAME/PATH`).
    classes: names of the classes, for tokenizer="classes".
    dtype: of a pretrained encoder's weights, "float32" or "bfloat16".
  """

  length: int = 64
  attention: str = "causal"
  tokenizer: str = "bytes"
  classes: tuple[str, ...] = ()
  dtype: str = "float32"

  def __post_init__(self):
    if self.dtype not in ("float32", "bfloat16"):
      raise ValueError(f"text.dtype={self.dtype!r} must be 'float32' or 'bfloat16'")

  @functools.cached_property
  def encoder(self) -> TextEncoder:
    """The encoder of prompts."""
    return make_text_encoder(self.tokenizer, self.length, self.classes, self.dtype)


@dataclasses.dataclass(frozen=True)
class ReportConfig:
  """What the report at the end of a run measures.

  Attributes:
    num_clips: test clips that the tokenizer reconstructs; 0 for no report.
    num_prompts: test prompts for which the generator makes clips; 0 for none.
    batch_size: clips that are coded or made together.
    mesh: devices of the first process that share the generator's work, such as "tensor:4" or, for
      all of them, "tensor:-1"; "" for one device.
    dtype: of the generator's weights and cache, "float32" or "bfloat16".
    expected_psnr: lowest and highest PSNR of reconstructed sprites, in dB, in earlier runs of the
      config; the report says so if a run is far below. None if they are not known.
    expected_all: the same for the share of generated sprites clips that are right in everything.
  """

  num_clips: int = 64
  num_prompts: int = 64
  batch_size: int = 16
  mesh: str = ""
  dtype: str = "float32"
  expected_psnr: tuple[float, float] | None = None
  expected_all: tuple[float, float] | None = None

  def __post_init__(self):
    for name, least in (("num_clips", 0), ("num_prompts", 0), ("batch_size", 1)):
      if getattr(self, name) < least:
        raise ValueError(f"report.{name}={getattr(self, name)} must be at least {least}")
    if self.dtype not in ("float32", "bfloat16"):
      raise ValueError(f"report.dtype={self.dtype!r} must be 'float32' or 'bfloat16'")
    if self.mesh:
      parse_mesh(self.mesh, "report.mesh")
    for name in ("expected_psnr", "expected_all"):
      values = getattr(self, name)
      if values is None:
        continue
      object.__setattr__(self, name, tuple(values))
      if len(values) != 2 or values[0] > values[1]:
        raise ValueError(f"report.{name}={values}: needs the lowest and the highest value")

  def devices(self) -> Mesh | None:
    """Returns the mesh of the generator; None for one device.

    Raises:
      ValueError: this process has too few devices, or they cannot share a batch.
    """
    if not self.mesh:
      return None
    try:
      mesh = make_mesh(parse_mesh(self.mesh), jax.local_devices())
    except ValueError as error:
      raise ValueError(f"report.mesh={self.mesh}: {error}") from None
    if self.batch_size % num_batch_shards(mesh):
      raise ValueError(
        f"report.batch_size={self.batch_size} does not divide over the {num_batch_shards(mesh)} "
        f"shards of report.mesh={self.mesh}; take a multiple, or tensor:-1"
      )
    return mesh


@dataclasses.dataclass(frozen=True)
class InitConfig:
  """The initial state of a stage.

  Attributes:
    from_: a file of weights from `python -m videoar_jax.convert weights`, a model's folder, or the
      folder of a converted image tokenizer, which is inflated over time, here or on the hub
      (`hf://OWNER/NAME[/PATH]`); None for the averaged weights of the last stage of the same kind,
      or random ones if there is none.
    with_optimizer: also continue the optimizer of the last stage of the same kind, with one
      learning-rate schedule over the steps of both; otherwise the optimizer starts from scratch.
    temporal: initial kernel slices of earlier frames when an image tokenizer is inflated: "zeros",
      or "random" as in the paper.
    missing: what a file of weights may lack: "error" for nothing, or "random" for parameters that
      start at random then, such as those that a video model has and an image model has not. The
      log lists them.
  """

  from_: str | None = None
  with_optimizer: bool = False
  temporal: str = "zeros"
  missing: str = "error"

  def __post_init__(self):
    if self.temporal not in ("zeros", "random"):
      raise ValueError(f"temporal={self.temporal!r} is unknown; use 'zeros' or 'random'")
    if self.missing not in ("error", "random"):
      raise ValueError(f"missing={self.missing!r} is unknown; use 'error' or 'random'")
    if self.missing == "random" and not self.from_:
      raise ValueError("missing='random' is for a file of weights; set from, or remove it")
    if self.from_ and self.with_optimizer:
      raise ValueError(
        f"from={self.from_} and with_optimizer exclude each other: a file has no optimizer; remove "
        "one"
      )


@dataclasses.dataclass(frozen=True)
class PartSettings:
  """A part of a stage's mixture in configs: these fields, and those of `data`.

  Attributes:
    weight: share of the stage's batches that this part provides; all weights sum to 1.
    batch_size: clips of a batch, over all devices; None for about as many tokens as
      `loop.batch_size` clips of the stage's `data` have.
    num_frames: frames of a clip; batches alternate between several numbers.
    pixels: side of a square with about as many pixels as each frame: 128, 256 or 512. With
      `aspect_ratios`, it replaces `resolution`.
    aspect_ratios: height by width; a sample is cropped to the nearest one.
  """

  weight: float
  batch_size: int | None = None
  num_frames: int | tuple[int, ...] | None = None
  pixels: int | None = None
  aspect_ratios: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class PartConfig:
  """A part of a stage's mixture.

  Attributes:
    name: for display.
    data: its source; `num_frames` is the smallest of those below.
    weight: share of the batches, and so of the tokens; the weights of all parts sum to 1.
    batch_size: clips of a batch, over all devices; None for about as many tokens as
      `loop.batch_size` clips of the stage's `data` have.
    num_frames: frames of a clip; batches alternate between several numbers.
    resolutions: (H, W) in pixels; a sample gets the one with the nearest aspect ratio.
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
    name: of its section, and of its folder in the workdir.
    kind: "tokenizer" or "generator", what is trained. It starts from the weights of the last stage
      of the same kind, unless `init` says otherwise; so does a discriminator of the same network.
    data: the stage's clips; unset fields are inherited from the run's `data`.
    loop: the training loop.
    loss: the training loss; its fields depend on the kind and the family.
    mesh: the stage's device mesh; unset fields are inherited from the run's `mesh`.
    init: the initial state.
    cache: latents that a generator reads instead of clips, if an earlier stage encodes them.
    mixture: parts that are trained on instead of `data` alone. `data` then sets the cost of a
      batch: batches of other shapes have about as many tokens as `loop.batch_size` clips of `data`.
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
  def shape(self) -> ClipShape:
    """That of the clips of `data`."""
    return ClipShape(self.data.num_frames, self.data.resolution)

  @property
  def shapes(self) -> tuple[ClipShape, ...]:
    """Those of its clips."""
    shapes = [shape for part in self.mixture for shape in part.shapes]
    return tuple(shapes) or (self.shape,)

  @property
  def source_data(self) -> list[DataConfig]:
    """Data settings of its sources: the parts of its mixture, or its clips."""
    return [part.data for part in self.mixture] or [self.data]


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """A run, checked and complete: `stages` are those that train, `caches` those that encode.

  Attributes:
    seed: random seed.
    family: model family of the generator.
    tokenizer_family: of the tokenizer.
    data: clips.
    text: prompts.
    tokenizer: an instance of the tokenizer family's `network`.
    generator: an instance of the family's `network`; None if no stage trains one.
    sampling: an instance of the family's `sampling`.
    mesh: devices.
    report: what the final report measures.
    stages: those that train.
    caches: those that encode.
    frozen_tokenizer: folder of a converted tokenizer, here or on the hub (`hf://OWNER/NAME/PATH`),
      which no stage trains; `tokenizer` is then left out.
    tokenizer_dtype: type in which a tokenizer encodes clips for generators and caches, and makes
      pixels of samples: "float32" or "bfloat16". It trains in float32 all the same.
  """

  seed: int
  family: Family
  tokenizer_family: TokenizerFamily
  data: DataConfig
  text: TextConfig
  tokenizer: TokenizerConfig
  generator: Any
  sampling: Any
  mesh: MeshConfig
  report: ReportConfig
  stages: tuple[StageConfig, ...]
  caches: tuple[Cache, ...] = ()
  frozen_tokenizer: pathlib.Path | None = None
  tokenizer_dtype: str = "float32"

  def __post_init__(self):
    if self.tokenizer_dtype not in ("float32", "bfloat16"):
      raise ValueError(f'tokenizer_dtype={self.tokenizer_dtype!r} must be "float32" or "bfloat16"')

  @property
  def generator_stages(self) -> tuple[StageConfig, ...]:
    """The stages that train the generator."""
    return tuple(stage for stage in self.stages if stage.kind == "generator")

  def num_tokens(self, stage: StageConfig, shape: ClipShape) -> int:
    """Returns the cost of a clip in a stage: a generator's tokens, a tokenizer's latent cells."""
    if stage.kind == "generator":
      return self.family.num_tokens(self, shape)
    return math.prod(self.tokenizer.latent_shape(*shape))

  def batch_size_of(
    self, stage: StageConfig, part: PartConfig, shape: ClipShape, num_shards: int
  ) -> int:
    """Returns the batch size of one shape of a mixture, for about as many tokens as other shapes.

    Args:
      stage: with the mixture.
      part: of the mixture; if it sets a batch size, that is used.
      shape: of the clips.
      num_shards: parts that batches are split into; it divides the batch size.
    """
    if part.batch_size is not None:
      return part.batch_size
    tokens = stage.loop.batch_size * self.num_tokens(stage, stage.shape)
    rows = tokens // self.num_tokens(stage, shape)
    return max(rows // num_shards, 1) * num_shards

  def chain(self, stage: StageConfig) -> list[StageConfig]:
    """Returns the stages that share optimizer and schedule with a stage, including itself."""
    chains: list[list[StageConfig]] = []
    for other in self.stages:
      if other.kind == stage.kind:
        if not other.init.with_optimizer:
          chains.append([])
        chains[-1].append(other)
    return next(chain for chain in chains if stage in chain)
