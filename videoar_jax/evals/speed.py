"""Benchmarks and their tables, compared with the device's measured limits, for `bench`."""

import argparse
import contextlib
import functools
import resource
import time

import jax
import jax.numpy as jnp

from videoar_jax.data.pipeline import make_source
from videoar_jax.evals.speed_programs import TrainingStep, config_of_size
from videoar_jax.experiment.command_line import parse_resolution, read_config
from videoar_jax.experiment.inputs import Batches
from videoar_jax.experiment.load import converted_family, find_run, load_tokenizer
from videoar_jax.experiment.parse import finalize
from videoar_jax.models.families import FAMILIES
from videoar_jax.nn.layers import count_parameters
from videoar_jax.nn.quantized import with_dtype
from videoar_jax.parallel import roofline
from videoar_jax.parallel.compiler import compiler_options
from videoar_jax.parallel.mesh import make_mesh
from videoar_jax.tokenizers.bsq.config import BSQConfig
from videoar_jax.tokenizers.families import TOKENIZERS
from videoar_jax.tokenizers.pixels import in_type_of
from videoar_jax.train.state import Template


def tokenizer_table(options: argparse.Namespace) -> str:
  """Measures a tokenizer; returns the table.

  Raises:
    ValueError: a flag is impossible, or there is no tokenizer.
  """
  resolution = parse_resolution(options.resolution)
  _check_counts(options, "num_frames")
  if hasattr(options, "tokenizer"):
    path = options.tokenizer
    family = converted_family(path) or find_run(path, needs_text=False)[1].tokenizer_family
    module = load_tokenizer(path).autoencoder
  else:
    family = TOKENIZERS["bsq"]
    module = jax.jit(family.make_module(BSQConfig(num_bits=options.num_bits)))(jax.random.key(0))
  config = module.config
  b, f = options.batch_size, options.num_frames
  latent_shape = config.latent_shape(f, resolution)
  video = jax.random.uniform(jax.random.key(1), (b, f, *resolution, 3), minval=-1.0)
  latents = jax.random.normal(jax.random.key(2), (b, *latent_shape, config.num_channels))
  video, latents = in_type_of(module, video), in_type_of(module, latents)
  dtype = video.dtype.name

  # The module is an argument, so that its weights are not compiled in as constants.
  jit = functools.partial(jax.jit, compiler_options=compiler_options(jax.default_backend()))
  encode, decode = jit(lambda m, x: m.encoder(x)), jit(lambda m, x: m.decoder(x))
  calls = {
    "encode": lambda: encode(module, video),
    "decode": lambda: decode(module, latents),
    "product": roofline.products(dtype),
  }
  seconds = roofline.interleave(calls, options.repeats)
  product, encode, decode = (
    calls["product"].amount / seconds["product"],
    seconds["encode"],
    seconds["decode"],
  )

  device = jax.devices()[0]
  num_parameters = count_parameters(Template.of(family.make_module(config)).shapes)
  num_left_out = num_parameters - count_parameters(module)
  lines = [
    f"{f} frames of {resolution[0]}x{resolution[1]}, batches of {b}, {dtype}, on "
    f"one device, {device.device_kind}",
    f"{num_parameters:,} parameters, {config.num_channels} "
    f"{'bits' if hasattr(config, 'num_bits') else 'channels'}, latent "
    f"{'x'.join(map(str, latent_shape))}",
    f"matrix products of {roofline.SIDE} a side: {product / 1e9:,.0f} GFLOP/s",
  ]
  if num_left_out:
    lines.append(f"{num_left_out:,} parameters are zero and left out; GFLOP count them")
  lines += ["", "          s a clip      pixels/s   GFLOP a clip   GFLOP/s  of the limit"]
  flops = family.flops(config, f, resolution)
  parts = {
    "encode": (encode / b, flops[0]),
    "decode": (decode / b, flops[1]),
    "both": ((encode + decode) / b, sum(flops)),
  }
  for name, (seconds, operations) in parts.items():
    rate, pixels = operations / seconds, f * resolution[0] * resolution[1] / seconds
    lines.append(
      f"{name:8}{seconds:10.3f}{pixels:14,.0f}{operations / 1e9:15.1f}{rate / 1e9:10,.0f}"
      f"{rate / product:14.0%}"
    )
  return "\n".join(lines)


def sample_table(options: argparse.Namespace) -> str:
  """Measures generation without the tokenizer's decoder; returns the table.

  Raises:
    ValueError: a flag is impossible, or the config has no generator.
  """
  _check_counts(options)
  run, stage = _generator_of(options)
  family, b = run.family, options.batch_size
  dtype = getattr(options, "dtype", "float32")
  model = jax.jit(lambda key: with_dtype(family.make_module(run)(key), dtype))(jax.random.key(0))
  null = run.text.encoder.null()
  text, seed = jnp.ones((b, *null.shape), null.dtype), jnp.zeros((), jnp.int32)

  def sample(model, text, seed):
    return family.sample_latents(run, stage, model, text, seed)

  begin = time.perf_counter()
  # As the family's own program: only VideoAR's decoder was measured with other options.
  settings = compiler_options(jax.default_backend(), is_decoding=family is FAMILIES["videoar"])
  compiled = jax.jit(sample, compiler_options=settings).lower(model, text, seed).compile()
  compile_s = time.perf_counter() - begin
  calls = {
    "clip": lambda: compiled(model, text, seed),
    # Products with int8 weights are of bfloat16 numbers.
    "product": roofline.products("bfloat16" if dtype == "int8" else dtype),
    "read": roofline.reads(dtype),
  }
  seconds = roofline.interleave(calls, options.repeats)
  product_rate, read_rate = (calls[name].amount / seconds[name] for name in ("product", "read"))
  lines = [
    f"{_name_of(options)}: {count_parameters(model):,} parameters, {dtype}, batches of {b}, "
    f"on {jax.devices()[0].device_kind}",
    f"matrix product {product_rate / 1e9:,.0f} GFLOP/s, reading {read_rate / 1e9:.1f} GB/s, "
    f"compiled in {compile_s:.0f} s",
    "",
    f"a clip            {seconds['clip'] / b:10.3f} s   {b / seconds['clip']:.2f} clips/s",
  ]
  counted = family.sampling_work(run, stage, b)
  if counted is not None:
    steps, flops = counted
    weights = sum(x.nbytes for x in jax.tree.leaves(model))
    floor = steps * weights / read_rate + flops / product_rate
    lines += [
      f"lower bound       {floor / b:10.3f} s   {steps} steps, {flops / b / 1e9:.1f} GFLOP, "
      f"{steps * weights / b / 2**30:.2f} GiB of weights",
      f"ratio to bound    {seconds['clip'] / floor:10.2f}",
    ]
  return "\n".join(lines)


def _check_counts(options: argparse.Namespace, *more: str) -> None:
  for name in ("batch_size", "repeats", *more):
    if getattr(options, name) < 1:
      raise ValueError(f"--{name}={getattr(options, name)} must be at least 1")


def _name_of(options: argparse.Namespace) -> str:
  return getattr(options, "size", None) or options.config


def training_table(options: argparse.Namespace) -> str:
  """Measures a training step, on random latents of the config's shape; returns the table.

  Raises:
    ValueError: a flag is impossible, or the config has no generator.
  """
  _check_counts(options)
  run, stage = _generator_of(options)
  config, b = run.generator, options.batch_size
  step = TrainingStep(run, stage, b)
  jit = functools.partial(jax.jit, compiler_options=compiler_options(jax.default_backend()))
  jitted, gradient = jit(step.loss), jit(jax.value_and_grad(step.loss))
  calls = {
    "forward": lambda: jitted(step.state["params"], step.batch),
    "with gradient": lambda: gradient(step.state["params"], step.batch),
    "whole step": step,
    "product": roofline.products(config.dtype),
  }
  with jax.set_mesh(step.mesh):
    seconds = roofline.interleave(calls, options.repeats)
  limit = calls["product"].amount / seconds["product"]
  num_tokens = run.num_tokens(stage, stage.shape)
  params = step.state["params"]
  num_bytes = sum(x.nbytes for x in jax.tree.leaves(params))
  lines = [
    f"{step.batch['latents'].shape[1]} latent frames, {num_tokens} tokens, batches of {b}, "
    f"{config.dtype}, on one device, {jax.devices()[0].device_kind}",
    f"{count_parameters(params):,} parameters, {num_bytes / 2**20:,.0f} MiB; "
    f"{stage.loop.optimizer.kind}",
    f"matrix products of {roofline.SIDE} a side: {limit / 1e9:,.0f} GFLOP/s",
    "",
    "                   s      tokens/s   GFLOP a step   GFLOP/s  of the limit",
  ]
  counted = run.family.flops(run, stage)
  operations = {}
  if counted is not None:
    forward_flops, training_flops = (b * flops for flops in counted)
    operations = {"forward": forward_flops}
    operations |= dict.fromkeys(("with gradient", "whole step"), training_flops)
  for name in ("forward", "with gradient", "whole step"):
    line = f"{name:13}{seconds[name]:10.3f}{b * num_tokens / seconds[name]:14,.0f}"
    if operations:
      rate = operations[name] / seconds[name]
      line += f"{operations[name] / 1e9:15.1f}{rate / 1e9:10,.0f}{rate / limit:14.0%}"
    lines.append(line)
  return "\n".join(lines)


def _generator_of(options: argparse.Namespace):
  """Returns the run and the stage to measure.

  Raises:
    ValueError: the config has no generator.
  """
  values = config_of_size(options.size) if hasattr(options, "size") else None
  values = values or read_config(options.config).to_dict()
  if hasattr(options, "dtype") and values.get("generator"):
    # With int8 weights, activations are float32.
    values["generator"]["dtype"] = "float32" if options.dtype == "int8" else options.dtype
  run = finalize(values)
  if not run.generator_stages:
    raise ValueError(f"--config={options.config} trains no generator; name one that does")
  return run, run.generator_stages[-1]


def data_table(options: argparse.Namespace) -> str:
  """Measures the input pipeline of a stage; returns the table.

  Raises:
    ValueError: a flag is impossible, or the data cannot be read.
  """
  if not options.seconds > 0 or min(options.threads) < 0:
    raise ValueError(f"--seconds={options.seconds} must be more than 0, --threads 0 or more")
  run = finalize(read_config(options.config))
  names = [stage.name for stage in run.stages]
  if options.stage is not None and options.stage not in names:
    raise ValueError(f"--stage={options.stage} is not one of {', '.join(names)}")
  stage = run.stages[names.index(options.stage) if options.stage else -1]
  batches = Batches(run, make_mesh(stage.mesh))
  sources = [make_source(data, "train") for data in stage.source_data]
  step_s = getattr(options, "step_s", None)
  columns = "threads   clips/s  frames/s  clips/s a core  frames/s a core  memory MiB"
  lines = [f"stage {stage.name}: {stage.data.source} {stage.data.path or ''}".rstrip(), ""]
  lines.append(columns + ("  waiting" if step_s is not None else ""))
  for num_threads in options.threads:
    totals = _read_for(batches, stage, sources, num_threads, options.seconds, step_s)
    clips, frames, wall_s, cpu_s, waited_s = totals
    # The kernel reports the process's peak memory so far, in KiB.
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = f"{num_threads:7}{clips / wall_s:10.1f}{frames / wall_s:10.0f}"
    line += f"{clips / cpu_s:16.1f}{frames / cpu_s:17.0f}{memory:12.0f}"
    lines.append(line + (f"{waited_s / wall_s:9.1%}" if step_s is not None else ""))
  return "\n".join(lines)


def _read_for(
  batches, stage, sources: list, num_threads: int, seconds: float, step_s: float | None
):
  """Reads batches for some seconds; returns clips, frames, and wall, CPU and waiting seconds.

  With `step_s` it sleeps that long after each batch, like a run while the device computes.
  """
  with contextlib.closing(
    batches.iterator(stage, sources, seed=0, num_threads=num_threads)
  ) as iterator:
    next(iterator)  # Warm-up: opens files and starts threads.
    clips = frames = 0
    waited_s, begin, cpu = 0.0, time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < seconds:
      asked = time.perf_counter()
      shape = next(iterator)["video"].shape
      waited_s += time.perf_counter() - asked
      clips, frames = clips + shape[0], frames + shape[0] * shape[1]
      time.sleep(step_s or 0)
    return clips, frames, time.perf_counter() - begin, time.process_time() - cpu, waited_s
