"""Everything that matters for speed on one device, within a few minutes, for `bench all`.

The most important measurements come first: what does not fit into the time is skipped. Each result
is compared with one in float32 whose products have their full precision ("highest"); on GPU and TPU
float32 products are less precise by default. The rate of products
is measured again after each result that is compared with it.
"""

import argparse
import dataclasses
import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from videoar_jax import __version__
from videoar_jax.evals.speed_attention import AttentionBench
from videoar_jax.evals.speed_programs import (
  TrainingStep,
  config_of_size,
  relative_error,
  sample_clips,
  teacher_forced_logits,
  without_zeros,
)
from videoar_jax.evals.speed_rows import Measurement, Report, measure_all, with_prefix
from videoar_jax.experiment.command_line import check_out
from videoar_jax.experiment.parse import finalize
from videoar_jax.models.families import FAMILIES
from videoar_jax.models.videoar.flops import visible_pairs
from videoar_jax.models.videoar.sequences import layout_of
from videoar_jax.nn.quantized import quantize, with_dtype
from videoar_jax.parallel import roofline
from videoar_jax.parallel.compiler import compiler_options
from videoar_jax.parallel.hardware import CHIPS
from videoar_jax.tokenizers.autoencoder import Autoencoder, abstract_params, autoencoder_of
from videoar_jax.tokenizers.bsq.config import BSQConfig
from videoar_jax.tokenizers.families import TOKENIZERS

# Larger ones for accelerators, which are far from their limit with those for CPUs.
_SIDE, _LENGTH = 8192, 2**24
_SAMPLED = ("bfloat16", "float32", "int8")  # Types of weights, the most important first.
_LIMIT_S = 2.0  # For each limit, besides the first calls.
_SMALL_CHANNELS = 32  # Of the tokenizer of small generators, at full resolution.


def all_table(options: argparse.Namespace) -> str:
  """Makes all measurements, writes `bench.md` and `bench.json`, and returns the table.

  Args:
    options: `out`, a folder; `minutes`; `size`, a name of VideoAR's sizes; and the numbers of clips
      `train_batch`, `sample_batches` and `tokenizer_batch`.
  Raises:
    ValueError: a flag is impossible.
    OSError: the folder cannot be written to.
  """
  if not (math.isfinite(options.minutes) and options.minutes > 0):
    raise ValueError(f"--minutes={options.minutes:g} must be more than 0")
  sizes = FAMILIES["videoar"].sizes
  if options.size not in sizes:
    raise ValueError(f"--size={options.size} is unknown; sizes are {', '.join(sizes)}")
  for name in ("train_batch", "tokenizer_batch", "sample_batches"):
    value = getattr(options, name)
    numbers = value if isinstance(value, list) else [value]
    if min(numbers) < 1:
      raise ValueError(f"--{name}={' '.join(map(str, numbers))} must be at least 1")
  check_out(pathlib.Path(options.out))
  device = jax.devices()[0]
  facts = {
    "videoar_jax": __version__,
    "jax": jax.__version__,
    "device": device.device_kind,
    "size": options.size,
    "minutes": f"{options.minutes:g}",
  }
  report = Report(options.out, facts)
  measure_all(_Benchmarks(options).measurements(), report, 60 * options.minutes)
  return report.text()


class _Benchmarks:
  """The measurements of a size; those of limits come first, since others are compared with them."""

  def __init__(self, options: argparse.Namespace):
    self.options = options
    self.dtype = FAMILIES["videoar"].sizes[options.size]["dtype"]
    self.loops: dict[str, roofline.Roofline] = {}  # Products by type.
    self.read_rate: float | None = None  # Bytes/s.
    is_cpu = jax.default_backend() == "cpu"
    self.side = roofline.SIDE if is_cpu else _SIDE
    self.length = 2**21 if is_cpu else _LENGTH

  def measurements(self) -> list[Measurement]:
    """Returns all, the most important first."""
    first, *others = _SAMPLED
    batches, train_batch = self.options.sample_batches, self.options.train_batch
    return [
      self._products("bfloat16"),
      self._products("float32"),
      Measurement("reading memory", 4.0, self.reads),
      self._products("int8"),
      Measurement(f"training step, {self.dtype}, batch {train_batch}", 60.0, self.training),
      *(self._sampling(first, b) for b in batches),
      *self.attention().measurements(),
      Measurement("tokenizer, encode", 30.0, functools.partial(self.tokenizer, "encode")),
      Measurement("tokenizer, decode", 40.0, functools.partial(self.tokenizer, "decode")),
      *(self._sampling(dtype, b) for b in batches for dtype in others),
    ]

  def _products(self, dtype: str) -> Measurement:
    name = f"matrix products, {'int8 weights' if dtype == 'int8' else dtype}"
    return Measurement(name, 4.0, functools.partial(self.products, dtype))

  def _sampling(self, dtype: str, b: int) -> Measurement:
    run = functools.partial(self.sampling, dtype, b)
    return Measurement(f"sampling, {dtype}, batch {b}", 50.0, run)

  def run_of(self, dtype: str):
    """Returns a run with activations of a type in training, and its stage."""
    run = finalize(config_of_size(self.options.size, dtype))
    return run, run.generator_stages[-1]

  def products(self, dtype: str) -> dict:
    """Measures the rate of large matrix products."""
    product = self.loops[dtype] = roofline.products(dtype, self.side)
    seconds = roofline.median_s(product, limit_s=_LIMIT_S)
    rate = product.amount / seconds
    note = f"{self.side} a side"
    peak = _published("flops")
    if peak and dtype == "bfloat16":
      note += f"; {rate / peak:.0%} of the published {peak / 1e12:,.0f} TFLOP/s"
    num_products = product.amount / (2 * self.side**3)
    return {
      "seconds": seconds / num_products,
      "rate": rate,
      "unit": "FLOP",
      "check": functools.partial(_product_error, dtype),
      "note": note,
    }

  def reads(self) -> dict:
    """Measures the rate of reading an array that is larger than caches."""
    read = roofline.reads("float32", self.length)
    seconds = roofline.median_s(read, limit_s=_LIMIT_S)
    rate = self.read_rate = read.amount / seconds
    num_bytes = 4 * 64 * self.length
    note, peak = f"{num_bytes / 2**30:.1f} GiB", _published("bandwidth")
    if peak:
      note += f"; {rate / peak:.0%} of the published {peak / 1e12:.1f} TB/s"
    seconds *= num_bytes / read.amount
    return {"seconds": seconds, "rate": rate, "unit": "B", "note": note}

  def training(self) -> dict:
    """Measures a training step, and compares the gradients of one clip."""
    b = self.options.train_batch
    run, stage = self.run_of(self.dtype)
    step = TrainingStep(run, stage, b)
    with jax.set_mesh(step.mesh):
      seconds = roofline.median_s(step)
    rate = b * run.family.flops(run, stage)[1] / seconds
    note = f"{b * run.num_tokens(stage, stage.shape) / seconds:,.0f} tokens/s"
    if memory := _peak_memory():
      note += f"; peak memory so far {memory / 2**30:.1f} GiB"
    params = step.state["params"]
    step.state = {}  # The optimizer's part is large.
    exact = TrainingStep(*self.run_of("float32"), 1, has_state=False)
    return {
      "seconds": seconds,
      "rate": rate,
      "unit": "FLOP",
      "share": self._share(rate, self.dtype),
      "check": functools.partial(_gradient_error, step, exact, params),
      "note": f"{note}; error of one clip's gradients",
    }

  def sampling(self, dtype: str, b: int) -> dict:
    """Measures clips of latents with guidance, and compares one clip's logits.

    The reference gets the bits that were drawn, and computes their logits in one pass.
    """
    run, stage = self.run_of("float32")
    exact = jax.jit(lambda: without_zeros(run.family.make_module(run)(jax.random.key(0))))()
    model = with_dtype(exact, dtype)
    null = run.text.encoder.null()
    text, seed = jnp.ones((b, *null.shape), null.dtype), jnp.zeros((), jnp.int32)
    settings = compiler_options(jax.default_backend(), is_decoding=True)
    program = jax.jit(functools.partial(sample_clips, run, stage), compiler_options=settings)
    compiled = program.lower(model, text, seed).compile()
    seconds = roofline.median_s(lambda: compiled(model, text, seed).quantized)
    decoded = compiled(model, text, seed)
    bits, logits = [x[:1] for x in decoded.bits], decoded.logits[:1]
    steps, flops = run.family.sampling_work(run, stage, b)
    weights = sum(x.nbytes for x in jax.tree.leaves(model))

    def check():
      with jax.default_matmul_precision("highest"):
        reference = jax.jit(functools.partial(teacher_forced_logits, run, stage))
        return relative_error(logits, reference(exact, text[:1], bits))

    rate, least_s = self.limit(dtype), None
    if rate is not None and self.read_rate is not None:
      least_s = steps * weights / self.read_rate + flops / rate
    note = f"{seconds / b:.3g} s a clip, {steps} steps, {with_prefix(weights)}B of weights"
    return {
      "seconds": seconds,
      "rate": b / seconds,
      "unit": "clips",
      "share": None if least_s is None else least_s / seconds,
      "check": check,
      "note": note,
    }

  def tokenizer(self, part: str) -> dict:
    """Measures `part`, "encode" or "decode", and compares the result of one clip."""
    run, stage = self.run_of("float32")
    family, config, b = TOKENIZERS["bsq"], run.tokenizer, self.options.tokenizer_batch
    if FAMILIES["videoar"].sizes[self.options.size]["d_model"] < 1024:
      config = dataclasses.replace(config, base_channels=_SMALL_CHANNELS)
    module = _random_autoencoder(config)
    f, resolution = stage.data.num_frames, stage.data.resolution
    if part == "encode":
      shape = (f, *resolution, 3)
    else:
      shape = (*config.latent_shape(f, resolution), config.num_channels)
    x = jax.random.normal(jax.random.key(1), (b, *shape))

    def code(module, x):
      return module.encoder(x) if part == "encode" else module.decoder(x)

    program = jax.jit(code, compiler_options=compiler_options(jax.default_backend()))
    seconds = roofline.median_s(lambda: program(module, x))
    found = program(module, x)[:1]

    def check():
      with jax.default_matmul_precision("highest"):
        return relative_error(found, jax.jit(code)(module, x[:1]))

    rate = b * family.flops(config, f, resolution)[part == "decode"] / seconds
    note = f"float32, {f}x{'x'.join(map(str, resolution))}, batch {b}, {config.base_channels} "
    return {
      "seconds": seconds,
      "rate": rate,
      "unit": "FLOP",
      "share": self._share(rate, "float32"),
      "check": check,
      "note": f"{note}channels, {b / seconds:.3g} clips/s",
    }

  def attention(self) -> AttentionBench:
    """Returns the measurements of attention in a training step."""
    run, stage = self.run_of(self.dtype)
    config, rule, b = run.generator, layout_of(run, stage.data).mask(), self.options.train_batch
    flops = 4 * b * visible_pairs(rule) * config.num_heads * config.head_dim
    shape = (b, rule.length, config.num_heads, config.head_dim)
    limit = functools.partial(self.limit, self.dtype)
    return AttentionBench(rule, shape, config.num_kv_heads, self.dtype, flops, limit)

  def limit(self, dtype: str) -> float | None:
    """Returns the FLOP/s of products, measured now; None if they were not measured before.

    The machine may do other work, or a hot device may have become slower.
    """
    if dtype not in self.loops:
      return None
    return self.loops[dtype].amount / roofline.median_s(self.loops[dtype], repeats=3, limit_s=1.0)

  def _share(self, rate: float, dtype: str) -> float | None:
    limit = self.limit(dtype)
    return None if limit is None else rate / limit


def _gradient_error(step: TrainingStep, exact: TrainingStep, params: PyTree) -> float:
  """Returns the error of a clip's gradients, against those of the same network in float32."""
  clip, params = jax.tree.map(lambda x: x[:1], step.batch), without_zeros(params)
  with jax.set_mesh(step.mesh):
    found = jax.jit(jax.grad(step.loss))(params, clip)
    with jax.default_matmul_precision("highest"):
      return relative_error(found, jax.jit(jax.grad(exact.loss))(params, clip))


def _product_error(dtype: str) -> float:
  """Returns the error of a product of matrices of 1024 a side."""
  x, weights = (jax.random.normal(jax.random.key(i), (1024, 1024)) for i in (7, 8))
  reference = jnp.matmul(x, weights, precision="highest")
  if dtype == "int8":
    rounded, scale = quantize(weights)
    x, rounded = x.astype(jnp.bfloat16), rounded.astype(jnp.bfloat16)
    found = jnp.matmul(x, rounded, preferred_element_type=jnp.float32) * scale
  else:
    found = jnp.matmul(x.astype(dtype), weights.astype(dtype))
  return relative_error(found, reference)


def _random_autoencoder(config: BSQConfig) -> Autoencoder:
  """Returns a random network, drawn by numpy: compiling its initialization can take minutes."""
  generator = np.random.default_rng(0)

  def draw(leaf):
    fan_in = math.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 10
    drawn = generator.standard_normal(leaf.shape, np.float32)
    return jnp.asarray(drawn * np.float32(fan_in**-0.5))

  return autoencoder_of(config, jax.tree.map(draw, abstract_params(config)))


def _published(field: str) -> float | None:
  """Returns a field of the device's specification; None for devices that are not in the table."""
  kind = jax.devices()[0].device_kind
  chip = next((chip for chip in CHIPS.values() if chip.kind == kind), None)
  return None if chip is None else getattr(chip, field) / chip.num_devices


def _peak_memory() -> int | None:
  """Returns the most bytes of the device's memory that were in use; None if it does not say."""
  stats = jax.devices()[0].memory_stats() or {}
  return stats.get("peak_bytes_in_use")
