"""Measures speed, beside the machine's own limit.

  python -m videoar_jax.bench tokenizer --num_frames=1 --resolution=256 --num_bits=32
  python -m videoar_jax.bench sample --size=l --batch_size=4
  python -m videoar_jax.bench train --size=small
  python -m videoar_jax.bench train --config=configs/quickstart.py
  python -m videoar_jax.bench data --config=configs/quickstart.py --step_s=0.5

Without --tokenizer it is a random network of the paper's size; `train` is the training step of a
generator, of a named size on clips of 17x128x128 pixels or a config's, on latents. The limit is the
rate of large matrix products, measured between the other measurements, on the same device and in
the same type; for samples, the time to read the weights in each step is added, at the rate at which
a large array is read. `data` reads the clips of a config's stage.
"""

import argparse
import contextlib
import resource
import sys
import time

from videoar_jax.experiment.command_line import Parser, parse_resolution, print_result, read_config

# Depth, width, heads, key and value heads, head width, MLP width, as in `configs/common.py`.
SIZES = {
  "tiny": (4, 128, 2, 2, 64, 384),
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
  command.add_argument(
    "--context", choices=("scales", "full_frame"), default="scales", help="see `Layout`"
  )
  command.add_argument("--batch_size", type=int, default=1, help="clips at a time")
  command.add_argument("--repeats", type=int, default=5, help="measurements; the median counts")
  command.set_defaults(run=sample_table)
  text = "time of a step that trains a generator, and of its parts"
  command = commands.add_parser("train", help=text, description=text)
  what = command.add_mutually_exclusive_group(required=True)
  what.add_argument(
    "--config",
    default=argparse.SUPPRESS,
    help="config file, with its argument, as configs/quickstart.py:size=small",
  )
  what.add_argument(
    "--size", choices=SIZES, default=argparse.SUPPRESS, help="of a network for 17x128x128 pixels"
  )
  command.add_argument(
    "--dtype",
    choices=("float32", "bfloat16"),
    default=argparse.SUPPRESS,
    help="of activations; default: the config's, or float32",
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

  from videoar_jax.experiment.load import load_tokenizer
  from videoar_jax.nn.layers import count_parameters
  from videoar_jax.parallel import roofline
  from videoar_jax.tokenizers.bsq.autoencoder import Autoencoder, AutoencoderConfig
  from videoar_jax.tokenizers.bsq.flops import decoder_flops, encoder_flops

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

  # The module is an argument, so that its weights are no constants.
  encode, decode = jax.jit(lambda m, x: m.encoder(x)), jax.jit(lambda m, x: m.decoder(x))
  calls = {
    "encode": lambda: encode(module, video),
    "decode": lambda: decode(module, latents),
    "product": roofline.products("float32"),
  }
  seconds = roofline.interleave(calls, options.repeats)
  product, encode, decode = (
    calls["product"].amount / seconds["product"],
    seconds["encode"],
    seconds["decode"],
  )

  device = jax.devices()[0]
  lines = [
    f"{f} frames of {resolution[0]}x{resolution[1]}, batches of {b}, float32, on "
    f"one device, {device.device_kind}",
    f"{count_parameters(module):,} parameters, {config.num_bits} bits, latent "
    f"{'x'.join(map(str, latent_shape))}",
    f"matrix products of {roofline.SIDE} a side: {product / 1e9:,.0f} GFLOP/s",
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

  from videoar_jax.models.videoar.decode import decode, sample_keys
  from videoar_jax.models.videoar.flops import forward_flops
  from videoar_jax.models.videoar.layout import Layout
  from videoar_jax.models.videoar.network import Generator, GeneratorConfig
  from videoar_jax.nn.layers import count_parameters
  from videoar_jax.parallel import roofline

  for name in ("batch_size", "repeats"):
    if getattr(options, name) < 1:
      raise ValueError(f"--{name}={getattr(options, name)} must be at least 1")
  settings = {"num_bits": 48, "vocabulary_size": 258, "context": options.context}
  config = GeneratorConfig(**_network(options.size), **settings)
  layout = Layout(1, 5, tuple((n, n) for n in (1, 2, 3, 4, 6, 8)), context=options.context)
  dtype, b = jnp.dtype(options.dtype), options.batch_size

  def make(key):
    model = Generator(nnx.Rngs(params=key), config, layout)
    return jax.tree.map(lambda x: x.astype(dtype), model)

  model = jax.jit(make)(jax.random.key(0))
  text, keys = jnp.ones((b, 1), jnp.int32), sample_keys(0, jnp.arange(b))

  def run(model, text, keys):
    table = jnp.full((layout.num_frames, layout.num_scales), 3.0)
    return decode(model, layout, text, jnp.ones(1, jnp.int32), keys, table).quantized

  weights = sum(x.nbytes for x in jax.tree.leaves(model.blocks))
  begin = time.perf_counter()
  compiled = jax.jit(run).lower(model, text, keys).compile()
  compile_s = time.perf_counter() - begin
  calls = {
    "clip": lambda: compiled(model, text, keys),
    "product": roofline.products(options.dtype),
    "read": roofline.reads(options.dtype),
  }
  seconds = roofline.interleave(calls, options.repeats)
  flops = 2 * b * forward_flops(config, layout)
  steps = 1 + layout.num_frames * layout.num_scales
  if layout.final_size:
    steps += layout.num_frames - 1
  product_rate, read_rate = (calls[name].amount / seconds[name] for name in ("product", "read"))
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
  """Measures a training step, on random latents of the config's shape; returns the table.

  Raises:
    ValueError: a flag is impossible, or the config has no generator.
  """
  import jax
  import jax.numpy as jnp

  from videoar_jax.models.videoar import corruption
  from videoar_jax.models.videoar.flops import forward_flops, parameter_bytes, training_flops
  from videoar_jax.models.videoar.task import GeneratorTask
  from videoar_jax.nn.layers import count_parameters
  from videoar_jax.parallel import roofline
  from videoar_jax.parallel.mesh import MeshConfig, make_mesh
  from videoar_jax.train.trainer import Trainer

  for name in ("batch_size", "repeats"):
    if getattr(options, name) < 1:
      raise ValueError(f"--{name}={getattr(options, name)} must be at least 1")
  run, stage = _generator_of(options)
  config, layout, b = run.generator, run.layout_of(stage.data), options.batch_size
  task = GeneratorTask(config, layout, stage.loss, None, {}, run.text.encoder, {})
  mesh = make_mesh(MeshConfig(data=1), devices=jax.local_devices()[:1])
  trainer = Trainer(task, stage.loop, mesh, seed=0)
  null = run.text.encoder.null()
  grid = (b, layout.num_frames, *layout.grid, config.num_bits)
  batch = {"text": jnp.ones((b, *null.shape), null.dtype)}
  batch["latents"] = jax.random.normal(jax.random.key(2), grid)
  state = trainer.init()

  def forward(params, batch):
    module = trainer.template.module(params)
    return task.loss(module, {}, batch, jax.random.key(4), is_training=True)[0]

  def corrupt(latents):
    settings, schedule = stage.loss.corruption, layout.schedule
    shape = (b, layout.num_frames, layout.num_scales)
    ratios = corruption.draw_ratios(jax.random.key(0), *shape, settings)
    flips = corruption.draw_flips(jax.random.key(1), ratios, schedule, config.num_bits)
    return corruption.corrupt(latents, schedule, flips, layout.prev_frame_input)

  def step():
    nonlocal state
    state, metrics = trainer.step(state, {}, batch, trainer.key)
    return metrics

  jitted, gradient = jax.jit(forward), jax.jit(jax.value_and_grad(forward))
  corrupted = jax.jit(corrupt)
  calls = {
    "forward": lambda: jitted(state["params"], batch),
    "with gradient": lambda: gradient(state["params"], batch),
    "whole step": step,
    "corruption": lambda: corrupted(batch["latents"]),
    "product": roofline.products(config.dtype),
  }
  with jax.set_mesh(mesh):
    seconds = roofline.interleave(calls, options.repeats)
  limit = calls["product"].amount / seconds["product"]
  lines = [
    f"{layout.num_frames} latent frames, {layout.length} tokens, batches of {b}, {config.dtype}, "
    f"on one device, {jax.devices()[0].device_kind}",
    f"{count_parameters(state['params']):,} parameters, "
    f"{parameter_bytes(config, layout) / 2**20:,.0f} MiB; attention "
    f"{trainer.template.module(state['params']).attention_backend()}, remat {config.remat}, "
    f"{stage.loop.optimizer.kind}",
    f"matrix products of {roofline.SIDE} a side: {limit / 1e9:,.0f} GFLOP/s",
    "",
    "                   s      tokens/s   GFLOP a step   GFLOP/s  of the limit",
  ]
  training = b * training_flops(config, layout, stage.loss.window)
  parts = {
    "forward": b * forward_flops(config, layout, stage.loss.window),
    "with gradient": training,
    "whole step": training,
  }
  for name, operations in parts.items():
    rate = operations / seconds[name]
    lines.append(
      f"{name:13}{seconds[name]:10.3f}{b * layout.length / seconds[name]:14,.0f}"
      f"{operations / 1e9:15.1f}{rate / 1e9:10,.0f}{rate / limit:14.0%}"
    )
  share = seconds["corruption"] / seconds["whole step"]
  lines.append(f"{'corruption':13}{seconds['corruption']:10.3f}   {share:.1%} of the whole step")
  return "\n".join(lines)


def _generator_of(options: argparse.Namespace):
  """Returns the run and the stage that `train` measures.

  Raises:
    ValueError: the config has no generator.
  """
  from videoar_jax.experiment.parse import finalize

  values = _config_of_size(options.size) if hasattr(options, "size") else None
  values = values or read_config(options.config).to_dict()
  if hasattr(options, "dtype") and values.get("generator"):
    values["generator"]["dtype"] = options.dtype
  run = finalize(values)
  stage = run.stage_of_kind("generator")
  if stage is None:
    raise ValueError(f"--config={options.config} trains no generator; name one that does")
  return run, stage


def _config_of_size(size: str) -> dict:
  """Returns a config for classes and clips of 17x128x128 pixels, as in `sample`."""
  loop = {"num_steps": 1_000_000, "batch_size": 1, "optimizer": {}}
  return {
    "data": {"num_frames": 17, "resolution": (128, 128)},
    "text": {"tokenizer": "classes", "classes": ("one",), "length": 1},
    "schedule": "1 2 3 4 6 8",
    "generator": _network(size),
    "stages": ("tokenizer", "generator"),
    "stage": {"tokenizer": {"loop": loop}, "generator": {"loop": loop}},
  }


def _network(size: str) -> dict:
  """Returns the generator's settings of a named size, for this machine."""
  import jax

  names = ("num_layers", "d_model", "num_heads", "num_kv_heads", "head_dim", "mlp_dim")
  settings = dict(zip(names, SIZES[size], strict=True))
  # Compiling each layer by itself pays for few of them.
  return settings | {"scan_layers": jax.default_backend() != "cpu" or settings["num_layers"] > 12}


def data_table(options: argparse.Namespace) -> str:
  """Measures the input pipeline of a stage; returns the table.

  Raises:
    ValueError: a flag is impossible, or the data cannot be read.
  """
  from videoar_jax.data.pipeline import make_source
  from videoar_jax.experiment.inputs import Batches
  from videoar_jax.experiment.parse import finalize
  from videoar_jax.parallel.mesh import make_mesh

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
    found = _read_for(batches, stage, sources, num_threads, options.seconds, step_s)
    clips, frames, wall_s, cpu_s, waited_s = found
    # The kernel counts the most memory that the process ever had, in KiB.
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = f"{num_threads:7}{clips / wall_s:10.1f}{frames / wall_s:10.0f}"
    line += f"{clips / cpu_s:16.1f}{frames / cpu_s:17.0f}{memory:12.0f}"
    lines.append(line + (f"{waited_s / wall_s:9.1%}" if step_s is not None else ""))
  return "\n".join(lines)


def _read_for(
  batches, stage, sources: list, num_threads: int, seconds: float, step_s: float | None
):
  """Reads batches for some seconds; returns clips, frames, and seconds: wall, CPU, and waiting.

  With `step_s` it sleeps so long after each batch, as a run does while the device works.
  """
  with contextlib.closing(
    batches.iterator(stage, sources, seed=0, num_threads=num_threads)
  ) as iterator:
    next(iterator)  # Until then, files are opened and threads begin.
    clips = frames = 0
    waited_s, begin, cpu = 0.0, time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < seconds:
      asked = time.perf_counter()
      shape = next(iterator)["video"].shape
      waited_s += time.perf_counter() - asked
      clips, frames = clips + shape[0], frames + shape[0] * shape[1]
      time.sleep(step_s or 0)
    return clips, frames, time.perf_counter() - begin, time.process_time() - cpu, waited_s


if __name__ == "__main__":
  sys.exit(main())
