"""The interface of a model family. Trainer, data, checkpoints, evaluation and launchers are shared.

A family is an object with the methods of `Family` and an entry in `families.FAMILIES`; there is no
base class.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from videoar_jax.tokenizers.base import Tokenizer, TokenizerConfig, TokenizerFamily
from videoar_jax.train.state import Template
from videoar_jax.train.task import Task


class ClipShape(NamedTuple):
  """A clip's frames, and (height, width) in pixels."""

  num_frames: int
  resolution: tuple[int, int]


class Curves(NamedTuple):
  """Training curves that a report draws beside the loss.

  Attributes:
    title: of the figure.
    labels: label of each metric, by its name in `metrics.jsonl`; "" for a single metric.
    chance: value of a random guess; None if there is no such value.
  """

  title: str
  labels: dict[str, str]
  chance: float | None = None


@runtime_checkable
class Data(Protocol):
  """The fields of `data` that families read: the clips of a run or a stage."""

  num_frames: int
  resolution: tuple[int, int]
  frame_rate: float


@runtime_checkable
class Stage(Protocol):
  """The fields of a training stage that families read; see `experiment.schema.StageConfig`.

  Attributes:
    name: of its section.
    data: its clips; if there are several shapes, the one that sets the cost of a batch.
    shapes: the shapes of all its clips.
    loss: an instance of the family's `loss`.
    loop: how long it trains.
    cache: latents that it reads instead of clips; None if it reads clips.
  """

  name: str
  data: Data
  shapes: tuple[ClipShape, ...]
  loss: Any
  loop: Any
  cache: Any


@runtime_checkable
class CaptionLoss(Protocol):
  """A stage's loss that completes captions, as prompts are completed; other losses need not."""

  def complete_caption(self, text: str, seconds: float) -> str:
    """Returns a caption as the network gets it.

    Args:
      text: of the data.
      seconds: duration of the clip; 0 for images.
    """


@runtime_checkable
class Run(Protocol):
  """The fields of a run that families read; see `experiment.schema.RunConfig`.

  Attributes:
    data: its clips.
    text: prompts: `length`, `attention`, and `encoder`, with `encode` and `null`.
    tokenizer_family: of the tokenizer.
    tokenizer: an instance of the tokenizer family's `network`.
    generator: an instance of the family's `network`.
    sampling: an instance of the family's `sampling`.
    generator_stages: the stages that train the generator.
  """

  data: Data
  text: Any
  tokenizer_family: TokenizerFamily
  tokenizer: TokenizerConfig
  generator: Any
  sampling: Any
  generator_stages: tuple[Stage, ...]


@dataclasses.dataclass(frozen=True)
class StepWork:
  """Costs of a generator's training step, without tokenizer, parameters and optimizer.

  Attributes:
    flops: FLOPs of a clip.
    executed_flops: the same with rematerialization in the backward pass.
    passes: how often parameters are read, or gathered.
    activation_bytes: bytes that a device keeps for the backward pass.
    moved_bytes: bytes that a device reads and writes.
    sent_bytes: bytes that a device sends to others, without parameters.
    live_share: share of the parameters that a device holds unsharded at a time.
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
  """Costs of generating clips' latents, without decoding pixels; bytes are per device.

  Attributes:
    num_steps: calls of the network.
    flops: FLOPs over all devices.
    memory_traffic: bytes of weights and cache that are read; with the activations that are read and
      written, where a family counts these.
    link_traffic: bytes sent to other devices.
    cache_bytes: of keys and values.
    activation_bytes: the most that activations take besides; 0 where a family does not count them.
  """

  num_steps: int
  flops: float
  memory_traffic: float
  link_traffic: float
  cache_bytes: int
  activation_bytes: float = 0.0


@dataclasses.dataclass(frozen=True)
class SamplingProgram:
  """The largest program of sampling, for a mesh that may be abstract.

  Attributes:
    program: a jitted function.
    arguments: shapes of its positional arguments, with their shardings.
    settings: shapes of its keyword arguments, with their shardings.
    params: the generator's parameters among the arguments.
    work: costs of whole clips.
    description: what is sampled, for display.
    num_parts: latent frames of a clip; the program makes one of them, or all.
  """

  program: Callable
  arguments: tuple
  settings: dict
  params: dict
  work: SamplingWork
  description: str
  num_parts: int


@runtime_checkable
class Sampler(Protocol):
  """A trained generator with its tokenizer and text encoder.

  `sample` takes the fields of the family's `sampling` as keyword arguments; their defaults are the
  run's config. Whatever else of `Model` is missing, the commands say so or leave their part out.

  Attributes:
    tokenizer: the one it was trained on.
    text_encoder: maps prompts to tokens, with `encode`.
    num_frames: of the training clips.
    resolution: (H, W) of its clips.
    batch_size: clips that are made together.
  """

  tokenizer: Tokenizer
  text_encoder: Any
  num_frames: int
  resolution: tuple[int, int]
  batch_size: int

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


@runtime_checkable
class Model(Sampler, Protocol):
  """A sampler of videos; its other methods take the same settings."""

  def extend(
    self,
    clips: UInt8[np.ndarray, "b f H W 3"],
    prompts: list[str],
    num_frames: int,
    seed: int = 0,
    *,
    overlap_frames: int = 1,
    **settings: Any,
  ) -> UInt8[np.ndarray, "b g H W 3"]:
    """Continues clips."""

  def stream(
    self,
    prompts: list[str],
    num_frames: float | None = None,
    seed: int = 0,
    *,
    image: UInt8[np.ndarray, "*b H W 3"] | None = None,
    video: UInt8[np.ndarray, "*b f H W 3"] | None = None,
    **settings: Any,
  ) -> Iterator[UInt8[np.ndarray, "b f H W 3"]]:
    """Generates clips and yields their frames as soon as they are ready."""

  def score(
    self, prompts: list[str], video: UInt8[np.ndarray, "b f H W 3"]
  ) -> dict[str, Float[np.ndarray, "b"]]:
    """Returns teacher-forced metrics of given clips, by name."""

  def num_steps(self, num_frames: int | None = None) -> int:
    """Returns how often the network is called for a clip."""


@runtime_checkable
class ClipwiseFamily(Protocol):
  """A family that codes several latent frames as one; those of others stand for themselves."""

  def overlaps(self, run: Run, num_frames: int) -> tuple[int, ...]:
    """Returns how many frames of a clip may be given: those that end where such a part ends.

    Args:
      run: the run.
      num_frames: of the whole clip, which is longer.
    """


@runtime_checkable
class Family(Protocol):
  """A kind of generator.

  Attributes:
    tokenizer: name of the tokenizer family that its runs train, in `TOKENIZERS`.
    tokenizers: names of all whose latents it takes.
    network: dataclass of `config.generator`.
    loss: dataclass of a generator stage's `loss`.
    sampling: dataclass of `config.sampling`; its fields are flags of `sample`.
    sizes: settings of `network` by name, for configs and `bench`.
    derived: fields of `network` that follow from other settings, which configs must not set.
    batch_fields: fields of a batch that its task reads besides video or latents, and text.
    headline: format of the main metrics besides the loss, by name: {"psnr": "{:.2f} dB"}.
  """

  tokenizer: str
  tokenizers: tuple[str, ...]
  network: type
  loss: type
  sampling: type
  sizes: dict[str, dict[str, Any]]
  derived: tuple[str, ...]
  batch_fields: tuple[str, ...]
  headline: dict[str, str]

  def network_config(self, values: dict, tokenizer: TokenizerConfig, text: Any) -> dict:
    """Returns the settings of `network`, derived ones included."""

  def check(self, run: Run) -> None:
    """Raises ValueError if one network cannot serve all stages, or sampling fits no stage."""

  def check_mesh(self, run: Run, mesh: Any) -> None:
    """Raises ShardingError if the network cannot be sharded over a mesh."""

  def num_tokens(self, run: Run, shape: ClipShape) -> int:
    """Returns the tokens of a clip; batches of different shapes have about equally many."""

  def describe(self, run: Run) -> dict[str, Any]:
    """Returns facts for `run.json`."""

  def curves(self, run: Run) -> Curves:
    """Returns the training curves that the report draws."""

  def make_module(self, run: Run) -> Callable[[jax.Array], nnx.Module]:
    """Returns a function from a random key to the network."""

  def make_task(
    self, run: Run, stage: Stage, tokenizer: Template | None, tokenizer_params: dict
  ) -> Task:
    """Returns the training task of a stage, with a frozen tokenizer."""

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
    batch_size: int | None = None,
  ) -> Sampler:
    """Wraps a trained network for sampling and scoring."""

  def flops(self, run: Run, stage: Stage) -> tuple[float, float] | None:
    """Returns the FLOPs of a clip's forward pass and of its training; None if not counted."""

  def step_work(self, run: Run, stage: Stage, mesh: Any) -> StepWork | None:
    """Estimates a training step; None if the family has no estimate, only the compiler's."""

  def sample_latents(
    self, run: Run, stage: Stage, module: nnx.Module, text: Array, seed: Array
  ) -> Float[Array, "b t h w d"]:
    """Generates clips' latents; called inside jit by `bench sample`."""

  def sampling_work(self, run: Run, stage: Stage, batch_size: int) -> tuple[int, float] | None:
    """Returns the steps of `sample_latents`, each of which reads all weights, and its FLOPs; None
    if they are not counted."""

  def sampling_program(
    self, run: Run, stage: Stage, template: Template, mesh: Any, num_clips: int, dtype: Any
  ) -> SamplingProgram | None:
    """Returns what `plan --decode` compiles; None if it is not supported."""
