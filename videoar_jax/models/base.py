"""What a model family brings. Trainer, data, checkpoints, evaluation and launchers are shared.

A family is an object with these methods, and an entry of `families.FAMILIES`: no base class.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from videoar_jax.tokenizers.base import Tokenizer, TokenizerConfig
from videoar_jax.train.state import Template
from videoar_jax.train.task import Task


class ClipShape(NamedTuple):
  """A clip's frames, and (height, width) in pixels."""

  num_frames: int
  resolution: tuple[int, int]


class Curves(NamedTuple):
  """What a report draws of training, beside the loss.

  Attributes:
    title: of the drawing.
    labels: of each metric, by its name in `metrics.jsonl`; "" for a metric that is alone.
    chance: what a blind guess has, if that means something.
  """

  title: str
  labels: dict[str, str]
  chance: float | None = None


class Data(Protocol):
  """The clips of a run or a stage, as far as families read `data`."""

  num_frames: int
  resolution: tuple[int, int]


class Stage(Protocol):
  """A stage of training, as far as families read it; see `experiment.schema.StageConfig`.

  Attributes:
    name: of its section.
    data: its clips; of several shapes, what a batch costs.
    shapes: of all its clips.
    loss: of the family's `loss`.
    loop: how long it trains.
    cache: what it reads in place of clips; None for clips.
  """

  name: str
  data: Data
  shapes: tuple[ClipShape, ...]
  loss: Any
  loop: Any
  cache: Any


class Run(Protocol):
  """A run, as far as families read it; see `experiment.schema.RunConfig`.

  Attributes:
    data: its clips.
    text: prompts: `length`, `attention`, and `encoder`, with `encode` and `null`.
    tokenizer: of the tokenizer family's `network`.
    generator: of the family's `network`.
    sampling: of the family's `sampling`.
    generator_stages: the stages that train the generator.
  """

  data: Data
  text: Any
  tokenizer: TokenizerConfig
  generator: Any
  sampling: Any
  generator_stages: tuple[Stage, ...]


@dataclasses.dataclass(frozen=True)
class StepWork:
  """What a generator's training step takes, without the tokenizer, its parameters and optimizer.

  Attributes:
    flops: operations of a clip.
    executed_flops: with what is computed again in the backward pass.
    passes: how often parameters are read, or gathered.
    activation_bytes: that a device keeps for the backward pass.
    moved_bytes: that a device reads and writes.
    sent_bytes: that a device sends to others, parameters aside.
    live_share: share of the parameters that a device has whole at a time.
  """

  flops: float
  executed_flops: float
  passes: int
  activation_bytes: float
  moved_bytes: float
  sent_bytes: float
  live_share: float


@dataclasses.dataclass(frozen=True)
class SamplingWork:
  """What generating clips takes, without their pixels; bytes are of one device.

  Attributes:
    num_steps: runs of the network.
    flops: operations over all devices.
    memory_traffic: bytes of weights and cache that are read.
    link_traffic: bytes sent to other devices.
    cache_bytes: of keys and values.
  """

  num_steps: int
  flops: float
  memory_traffic: float
  link_traffic: float
  cache_bytes: int


@dataclasses.dataclass(frozen=True)
class SamplingProgram:
  """The largest program that sampling runs, for a mesh of devices that may not be there.

  Attributes:
    program: jitted.
    arguments: shapes, with their shardings.
    settings: the same, by name.
    params: of the arguments, the generator's parameters.
    work: of whole clips.
    description: what is sampled, for people.
    num_parts: parts of a clip that the program runs for: latent frames.
  """

  program: Callable
  arguments: tuple
  settings: dict
  params: dict
  work: SamplingWork
  description: str
  num_parts: int


class Model(Protocol):
  """A trained generator with its tokenizer and prompts, for use.

  `sample` and its relatives take the settings of the family's `sampling` by name; what is not
  named is as in the run's config.

  Attributes:
    tokenizer: that it was trained on.
    text_encoder: maps prompts to tokens, with `encode`.
    num_frames: of the clips of training.
    resolution: (H, W) of its clips.
  """

  tokenizer: Tokenizer
  text_encoder: Any
  num_frames: int
  resolution: tuple[int, int]

  def sample(
    self,
    prompts: list[str],
    num_frames: int | None = None,
    seed: int = 0,
    *,
    image: UInt8[np.ndarray, "*b H W 3"] | None = None,
    video: UInt8[np.ndarray, "*b f H W 3"] | None = None,
    overlap_frames: int | None = None,
    sample_ids: Sequence[int] | None = None,
    **settings: Any,
  ) -> UInt8[np.ndarray, "b f H W 3"]:
    """Generates a clip for each prompt."""

  def extend(
    self, clips: UInt8[np.ndarray, "b f H W 3"], prompts: list[str], num_frames: int, seed: int = 0
  ) -> UInt8[np.ndarray, "b g H W 3"]:
    """Continues clips."""

  def stream(
    self, prompts: list[str], num_frames: float | None = None, seed: int = 0
  ) -> Iterator[UInt8[np.ndarray, "b f H W 3"]]:
    """Generates clips and yields their frames as they are ready."""

  def score(
    self, prompts: list[str], video: UInt8[np.ndarray, "b f H W 3"]
  ) -> dict[str, Float[np.ndarray, "b"]]:
    """Returns teacher-forced measures of given clips, by name."""

  def num_steps(self, num_frames: int | None = None) -> int:
    """Returns how often the network runs for a clip."""


class Family(Protocol):
  """A kind of generator.

  Attributes:
    tokenizer: name of its tokenizer family, in `TOKENIZERS`.
    network: dataclass of `config.generator`.
    loss: dataclass of a generator stage's `loss`.
    sampling: dataclass of `config.sampling`; its fields are flags of `sample`.
    sizes: settings of `network` by name, for configs and `bench`.
    derived: fields of `network` that follow from the rest, which configs must not set.
    batch_fields: of a batch that its task reads, beside video or latents, and text.
    headline: how the main metrics beside the loss are written, by name: {"psnr": "{:.2f} dB"}.
  """

  tokenizer: str
  network: type
  loss: type
  sampling: type
  sizes: dict[str, dict[str, Any]]
  derived: tuple[str, ...]
  batch_fields: tuple[str, ...]
  headline: dict[str, str]

  def network_config(self, values: dict, tokenizer: TokenizerConfig, text: Any) -> dict:
    """Returns the settings of `network`, with those that follow from the rest."""

  def check(self, run: Run) -> None:
    """Raises ValueError if one network cannot serve all stages, or sampling fits none of them."""

  def check_mesh(self, run: Run, mesh: Any) -> None:
    """Raises ShardingError if the network does not divide over a mesh."""

  def num_tokens(self, run: Run, shape: ClipShape) -> int:
    """Returns what a clip costs: batches of several shapes have about as many of them."""

  def describe(self, run: Run) -> dict[str, Any]:
    """Returns facts for `run.json`."""

  def curves(self, run: Run) -> Curves:
    """Returns what the report draws of training."""

  def make_module(self, run: Run) -> Callable[[jax.Array], nnx.Module]:
    """Returns what makes the network from a key."""

  def make_task(
    self, run: Run, stage: Stage, tokenizer: Template | None, tokenizer_params: dict
  ) -> Task:
    """Returns what a stage trains on a frozen tokenizer."""

  def make_model(
    self,
    run: Run,
    stage: Stage,
    module: nnx.Module,
    tokenizer_module: nnx.Module,
    *,
    resolution: tuple[int, int] | None = None,
    mesh: Mesh | None = None,
    dtype: Any = None,
  ) -> Model:
    """Returns a trained network for use."""

  def flops(self, run: Run, stage: Stage) -> tuple[float, float] | None:
    """Returns the operations of a clip's forward pass and of its training; None if not counted."""

  def step_work(self, run: Run, stage: Stage, mesh: Any) -> StepWork | None:
    """Counts a training step; None where that is not counted: it is compiled only."""

  def sample_latents(
    self, run: Run, stage: Stage, module: nnx.Module, text: Array, seed: Array
  ) -> Float[Array, "b t h w d"]:
    """Generates clips' latents inside jit, as `bench sample` measures it."""

  def sampling_work(self, run: Run, stage: Stage, batch_size: int) -> tuple[int, float] | None:
    """Returns the steps and operations of `sample_latents`; None where they are not counted."""

  def sampling_program(
    self, run: Run, stage: Stage, template: Template, mesh: Any, num_clips: int, dtype: Any
  ) -> SamplingProgram | None:
    """Returns what `plan --decode` compiles; None where there is no such plan."""
