"""Measures speed, beside the machine's own limit.

  python -m videoar_jax.bench tokenizer --num_frames=1 --resolution=256 --num_bits=32
  python -m videoar_jax.bench sample --size=l --batch_size=4
  python -m videoar_jax.bench train --config=configs/quickstart.py:size=small
  python -m videoar_jax.bench data --config=configs/quickstart.py --step_s=0.5

Without --tokenizer it is a random network of the paper's size; `train` is a training step of a
config's generator. The limit is the rate of a large matrix product, measured between the other
measurements, on the same device; for samples, the time to read the weights in each step is added,
at the rate at which a large array is read. `data` reads the clips of a config's stage.
"""

import argparse
import contextlib
import pathlib
import resource
import statistics
import sys
import time
from collections.abc import Callable

from videoar_jax.command_line import Parser, parse_resolution, print_result, read_config

# Depth, width, heads, key and value heads, head width, MLP width, as in `configs/common.py`.
SIZES = {
  "small": (6, 256, 4, 4, 64, 768),
  "base": (12, 768, 12, 12, 64, 2048),
  "l": (24, 1536, 12, 12, 128, 4096),
  "xl": (32, 2048, 16, 16, 128, 5632),
  "4b": (36, 2560, 32, 8, 128, 9728),
}


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns the exit status: 2 for what the user can mend."""
  parser = Parser(
    prog="python -m videoar_jax.bench",
    description=__doc__,
  )
  commands = parser.add_subparsers(dest="command", required=True, metavar="WHAT")
  text = "time to encode and to decode a clip"
  command = commands.add_parser("tokenizer", help=text, description=text)
  command.add_argument(
    "--tokenizer",
    default=argparse.SUPPRESS,
    help="workdir, checkpoint or converted tokenizer to measure",
  )
  command.add_argument("--num_bits", type=int, default=32, help="of the random network")
  command.add_argument("--num_frames", type=int, default=17, help="frames of a clip")
  command.add_argument("--resolution", default="256", help="in pixels, as 256 or HEIGHTxWIDTH")
  command.add_argument("--batch_size", type=int, default=1, help="clips at a time")
  command.add_argument("--repeats", type=int, default=5, help="measurements; the median counts")
  command.set_defaults(run=tokenizer_table)
  text = "time to generate the bits of a clip of 17x128x128 pixels, with guidance"
  command = commands.add_parser("sample", help=text, description=text)
  command.add_argument("--size", choices=SIZES, default="small", help="of the random network")
  command.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  command.add_argument("--past", choices=("scales", "final"), default="scales", help="see `Layout`")
  command.add_argument("--batch_size", type=int, default=1, help="clips at a time")
  command.add_argument("--repeats", type=int, default=5, help="measurements; the median counts")
  command.set_defaults(run=sample_table)
  text = "time of a step that trains a generator, its optimizer left out"
  command = commands.add_parser("train", help=text, description=text)
  command.add_argument(
    "--config",
    required=True,
    default=argparse.SUPPRESS,
    help="config file, with its argument, as configs/quickstart.py:size=small",
  )
  command.add_argument("--batch_size", type=int, default=4, help="clips a step")
  command.add_argument("--repeats", type=int, default=5, help="measurements; the median counts")
  command.set_defaults(run=training_table)
  text = "how fast clips are read, by how many threads, and how long a run would wait for them"
  command = commands.add_parser("data", help=text, description=text)
  command.add_argument(
    "--config",
    required=True,
    default=argparse.SUPPRESS,
    help="config file, with its argument, whose data to read",
  )
  command.add_argument("--stage", help="whose clips to read; default is the last one")
  command.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
  command.add_argument("--threads", type=int, nargs="+", default=[0, 1, 2, 4], help="to compare")
  command.add_argument(
    "--step_s",
    type=float,
    default=argparse.SUPPRESS,
    help="seconds of a step on the device; then the table has the share of time that a run waits",
  )
  command.set_defaults(run=data_table)
  options = parser.parse_args(argv)
  return print_result(lambda: options.run(options))


def tokenizer_table(options: argparse.Namespace) -> str:
  """Measures a tokenizer; returns the table.

  Raises:
    ValueError: a flag is impossible, or there is no tokenizer.
  """
  import jax
  from flax import nnx

  from videoar_jax.load import load_tokenizer
  from videoar_jax.nn.layers import count_parameters
  from videoar_jax.tokenizer.autoencoder import Autoencoder, AutoencoderConfig
  from videoar_jax.tokenizer.flops import decoder_flops, encoder_flops

  resolution = parse_resolution(options.resolution)
  for name in ("batch_size", "repeats", "num_frames"):
    if getattr(options, name) < 1:
      raise ValueError(f"--{name}={getattr(options, name)} must be at least 1")
  if hasattr(options, "tokenizer"):
    module = load_tokenizer(options.tokenizer).autoencoder
  else:
    config = AutoencoderConfig(num_bits=options.num_bits)
    module = jax.jit(lambda key: Autoencoder(nnx.Rngs(params=key), config))(jax.random.key(0))
  config = module.config
  b, f = options.batch_size, options.num_frames
  latent_shape = config.latent_shape(f, resolution)
  video = jax.random.uniform(jax.random.key(1), (b, f, *resolution, 3), minval=-1.0)
  latents = jax.random.normal(jax.random.key(2), (b, *latent_shape, config.num_bits))

  product = _product_rate(options.repeats)
  # Jitted once each; the module is an argument, so that its weights are no constants.
  encode = _seconds(lambda m, x: m.encoder(x), module, video, repeats=options.repeats)
  decode = _seconds(lambda m, x: m.decoder(x), module, latents, repeats=options.repeats)
  product = max(product, _product_rate(options.repeats))

  device = jax.devices()[0]
  lines = [
    f"{f} frames of {resolution[0]}x{resolution[1]}, batches of {b}, float32, on "
    f"one device, {device.device_kind}",
    f"{count_parameters(module):,} parameters, {config.num_bits} bits, latent "
    f"{'x'.join(map(str, latent_shape))}",
    f"a matrix product of {_SIDE} a side: {product / 1e9:,.0f} GFLOP/s",
    "",
    "          s a clip      pixels/s   GFLOP a clip   GFLOP/s  of the limit",
  ]
  flops = (encoder_flops(config, f, resolution), decoder_flops(config, f, resolution))
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
  """Measures generation without the pixels' decoder; returns the table.

  Raises:
    ValueError: a flag is impossible.
  """
  import jax
  import jax.numpy as jnp
  from flax import nnx

  from videoar_jax.nn.layers import count_parameters
  from videoar_jax.videoar.decode import decode, sample_keys
  from videoar_jax.videoar.flops import forward_flops
  from videoar_jax.videoar.layout import Layout
  from videoar_jax.videoar.model import Generator, GeneratorConfig

  for name in ("batch_size", "repeats"):
    if getattr(options, name) < 1:
      raise ValueError(f"--{name}={getattr(options, name)} must be at least 1")
  names = ("depth", "width", "num_heads", "num_kv_heads", "head_width", "mlp_width")
  sizes = dict(zip(names, SIZES[options.size], strict=True))
  # Compiling each layer by itself pays for few of them.
  is_scanned = jax.default_backend() != "cpu" or sizes["depth"] > 12
  settings = {"num_bits": 48, "vocabulary_size": 258, "past": options.past}
  config = GeneratorConfig(**sizes, **settings, is_scanned=is_scanned)
  layout = Layout(1, 5, tuple((n, n) for n in (1, 2, 3, 4, 6, 8)), past=options.past)
  dtype, b = jnp.dtype(options.dtype), options.batch_size

  def make(key):
    model = Generator(nnx.Rngs(params=key), config, layout)
    return jax.tree.map(lambda x: x.astype(dtype), model)

  model = jax.jit(make)(jax.random.key(0))
  text, keys = jnp.ones((b, 1), jnp.int32), sample_keys(0, jnp.arange(b))

  def run(model, text, keys):
    table = jnp.full((layout.num_frames, layout.num_scales), 3.0)
    return decode(model, layout, text, jnp.ones(1, jnp.int32), keys, table).latents

  side, weights = 2048, sum(x.nbytes for x in jax.tree.leaves(model.blocks))
  matrix = jax.random.normal(jax.random.key(3), (side, side)).astype(dtype)
  array = jnp.ones((64, 2**20), dtype)
  begin = time.perf_counter()
  compiled = jax.jit(run).lower(model, text, keys).compile()
  compile_s = time.perf_counter() - begin
  times = {"clip": [], "product": [], "read": []}
  product, read = jax.jit(jnp.dot), jax.jit(lambda x: jnp.max(x, axis=1))
  calls = {
    "clip": lambda: compiled(model, text, keys),
    "product": lambda: product(matrix, matrix),
    "read": lambda: read(array),
  }
  # In turns, so that all see the machine as it is at the same time.
  for i in range(options.repeats + 1):
    for name, call in calls.items():
      begin = time.perf_counter()
      jax.block_until_ready(call())
      if i:  # The first call compiles.
        times[name].append(time.perf_counter() - begin)
  seconds = {name: statistics.median(values) for name, values in times.items()}
  flops = 2 * b * forward_flops(config, layout)
  steps = 1 + layout.num_frames * layout.num_scales
  if layout.final_size:
    steps += layout.num_frames - 1
  product_rate, read_rate = 2 * side**3 / seconds["product"], array.nbytes / seconds["read"]
  floor = steps * weights / read_rate + flops / product_rate
  return "\n".join(
    [
      f"{options.size}: {count_parameters(model):,} parameters, {options.dtype}, {layout.length} "
      f"tokens in {steps} steps, batches of {b}, guided, on {jax.devices()[0].device_kind}",
      f"matrix product {product_rate / 1e9:,.0f} GFLOP/s, reading {read_rate / 1e9:.1f} GB/s, "
      f"compiled in {compile_s:.0f} s",
      "",
      f"a clip            {seconds['clip'] / b:10.3f} s   {b / seconds['clip']:.2f} clips/s",
      f"its floor         {floor / b:10.3f} s   {flops / b / 1e9:.1f} GFLOP, "
      f"{steps * weights / b / 2**30:.2f} GiB of weights",
      f"times the floor   {seconds['clip'] / floor:10.2f}",
    ]
  )


def training_table(options: argparse.Namespace) -> str:
  """Measures the loss and its gradient, on random inputs of the config's shape.

  Raises:
    ValueError: a flag is impossible, or the config has no generator.
  """
  import jax
  import jax.numpy as jnp
  from flax import nnx

  from videoar_jax.nn.layers import count_parameters
  from videoar_jax.train.config import finalize
  from videoar_jax.videoar.flops import forward_flops, parameter_bytes, training_flops
  from videoar_jax.videoar.model import Generator

  for name in ("batch_size", "repeats"):
    if getattr(options, name) < 1:
      raise ValueError(f"--{name}={getattr(options, name)} must be at least 1")
  run = finalize(read_config(options.config))
  stage = run.stage_of_kind("generator")
  if stage is None:
    raise ValueError(f"--config={options.config} trains no generator; name one that does")
  config, layout, b = run.generator, run.layout_of(stage.data), options.batch_size
  model = jax.jit(lambda key: Generator(nnx.Rngs(params=key), config, layout))(jax.random.key(0))
  keys = jax.random.split(jax.random.key(1), 4)
  grid = (b, layout.num_frames, *layout.grid, config.num_bits)
  shape = (b, layout.num_frames, layout.frame_size, config.num_bits)
  num_features = config.num_bits * (2 if layout.previous == "all" else 1)
  null = run.text.encoder.null()
  arrays = {
    "text": jnp.ones((b, *null.shape), null.dtype),
    "features": jax.random.normal(keys[1], (*shape[:3], num_features)),
    "latents": jax.random.normal(keys[2], grid),
    "labels": jax.random.bernoulli(keys[3], 0.5, shape).astype(jnp.float32),
  }

  def forward(model, arrays):
    text = arrays["text"]
    settings = {"latents": arrays["latents"], "window": stage.loss.window}
    logits = model(text, arrays["features"], layout, **settings)
    return jnp.mean(jax.nn.softplus(logits) - logits * arrays["labels"])

  product = _product_rate(options.repeats)
  seconds = _seconds(forward, model, arrays, repeats=options.repeats)
  both = _seconds(jax.value_and_grad(forward), model, arrays, repeats=options.repeats)
  product = max(product, _product_rate(options.repeats))
  lines = [
    f"{layout.num_frames} latent frames, {layout.length} tokens, batches of {b}, float32, on one "
    f"device, {jax.devices()[0].device_kind}",
    f"{count_parameters(model):,} parameters, {parameter_bytes(config, layout) / 2**20:,.0f} MiB; "
    f"attention {model.attention_backend()}, remat {config.remat}",
    f"a matrix product of {_SIDE} a side: {product / 1e9:,.0f} GFLOP/s",
    "",
    "               s a step      tokens/s   GFLOP a step   GFLOP/s  of the limit",
  ]
  parts = {
    "forward": (seconds, b * forward_flops(config, layout, stage.loss.window)),
    "with gradient": (both, b * training_flops(config, layout, stage.loss.window)),
  }
  for name, (seconds, operations) in parts.items():
    rate = operations / seconds
    lines.append(
      f"{name:13}{seconds:10.3f}{b * layout.length / seconds:14,.0f}{operations / 1e9:15.1f}"
      f"{rate / 1e9:10,.0f}{rate / product:14.0%}"
    )
  return "\n".join(lines)


_SIDE = 2048


def _product_rate(repeats: int) -> float:
  """Returns the operations a second of a large matrix product."""
  import jax
  import jax.numpy as jnp

  matrix = jax.random.normal(jax.random.key(3), (_SIDE, _SIDE))
  return 2 * _SIDE**3 / _seconds(jnp.dot, matrix, matrix, repeats=repeats)


def data_table(options: argparse.Namespace) -> str:
  """Measures the input pipeline of a stage; returns the table.

  Raises:
    ValueError: a flag is impossible, or the data cannot be read.
  """
  from videoar_jax.data.pipeline import make_source
  from videoar_jax.parallel.sharding import make_mesh
  from videoar_jax.train.config import finalize
  from videoar_jax.train.stages import Stages

  if not options.seconds > 0 or min(options.threads) < 0:
    raise ValueError(f"--seconds={options.seconds} must be more than 0, --threads 0 or more")
  run = finalize(read_config(options.config))
  names = [stage.name for stage in run.stages]
  if options.stage is not None and options.stage not in names:
    raise ValueError(f"--stage={options.stage} is not one of {', '.join(names)}")
  stage = run.stages[names.index(options.stage) if options.stage else -1]
  stages = Stages(run, pathlib.Path(), make_mesh(run.mesh))
  sources = [make_source(data, "train") for data in stage.source_data]
  step_s = getattr(options, "step_s", None)
  columns = "threads   clips/s  frames/s  clips/s a core  frames/s a core  memory MiB"
  lines = [f"stage {stage.name}: {stage.data.source} {stage.data.path or ''}".rstrip(), ""]
  lines.append(columns + ("  waiting" if step_s is not None else ""))
  for num_threads in options.threads:
    found = _read_for(stages, stage, sources, num_threads, options.seconds, step_s)
    clips, frames, wall_s, cpu_s, waited_s = found
    # The kernel counts the most memory that the process ever had, in KiB.
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = f"{num_threads:7}{clips / wall_s:10.1f}{frames / wall_s:10.0f}"
    line += f"{clips / cpu_s:16.1f}{frames / cpu_s:17.0f}{memory:12.0f}"
    lines.append(line + (f"{waited_s / wall_s:9.1%}" if step_s is not None else ""))
  return "\n".join(lines)


def _read_for(stages, stage, sources: list, num_threads: int, seconds: float, step_s: float | None):
  """Reads batches for some seconds; returns clips, frames, and seconds: wall, CPU, and waiting.

  With `step_s` it sleeps so long after each batch, as a run does while the device works.
  """
  with contextlib.closing(
    stages.make_iterator(stage, sources, seed=0, num_threads=num_threads)
  ) as batches:
    next(batches)  # Until then, files are opened and threads begin.
    clips = frames = 0
    waited_s, begin, cpu = 0.0, time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < seconds:
      asked = time.perf_counter()
      shape = next(batches)["video"].shape
      waited_s += time.perf_counter() - asked
      clips, frames = clips + shape[0], frames + shape[0] * shape[1]
      time.sleep(step_s or 0)
    return clips, frames, time.perf_counter() - begin, time.process_time() - cpu, waited_s


def _seconds(function: Callable, *arguments, repeats: int) -> float:
  """Returns the median time of a call, compiled before."""
  import jax

  compiled = jax.jit(function).lower(*arguments).compile()
  jax.block_until_ready(compiled(*arguments))
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(compiled(*arguments))
    times.append(time.perf_counter() - start)
  return statistics.median(times)


if __name__ == "__main__":
  sys.exit(main())
