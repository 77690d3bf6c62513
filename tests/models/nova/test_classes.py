"""Class-conditional NOVA: labels of public checkpoints, training, sampling and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest
from media_files import write_video
from tiny_nova import make_config

from videoar_jax import load_model, sample
from videoar_jax.experiment import parse, run
from videoar_jax.models.nova import convert
from videoar_jax.models.nova.config import NovaConfig
from videoar_jax.models.nova.network import network_of, template_of
from videoar_jax.models.nova.task import NovaTask
from videoar_jax.text.tokenizers import ClassTokenizer
from videoar_jax.train.state import flatten

NAMES = ("cat", "dog", "fish")


def public_tensors(config, num_labels):
  """Returns random tensors of a public class-conditional checkpoint."""
  rng = np.random.default_rng(0)
  m, width, p = config.d_model, config.head_mlp_dim, config.patch_size
  made = {
    "label_embed.weight": (num_labels, m),
    "mask_embed.bos_token": (1, m),
    "mask_embed.mask_token": (1, m),
    "image_decoder.head.weight": (config.token_width, width),
    "image_decoder.head.bias": (config.token_width,),
    "image_decoder.norm.proj.weight": (2 * width, width),
    "image_decoder.norm.proj.bias": (2 * width,),
  }
  patches = {"video_encoder": (m, config.video_patch_size), "image_encoder": (m, p)}
  for name, (wide, size) in (patches | {"image_decoder": (width, p)}).items():
    made[f"{name}.patch_embed.proj.weight"] = (wide, config.num_channels, size, size)
    made[f"{name}.patch_embed.proj.bias"] = (wide,)

  def linear(name, num_in, num_out):
    made[f"{name}.weight"], made[f"{name}.bias"] = (num_out, num_in), (num_out,)

  def norm(name, size):
    made[f"{name}.weight"], made[f"{name}.bias"] = (size,), (size,)

  for name in ("label_embed", "video_encoder", "image_encoder", "video_pos_embed"):
    norm(f"{name}.norm", m)
  linear("video_pos_embed.time_proj.0", 256, m)
  linear("video_pos_embed.time_proj.2", m, m)
  stacks = {"video_encoder": config.num_video_layers, "image_encoder": config.num_image_layers}
  for name, count in stacks.items():
    for block in (f"{name}.blocks.{i}" for i in range(count)):
      linear(f"{block}.attn.qkv", m, 3 * m)
      linear(f"{block}.attn.proj", m, m)
      linear(f"{block}.mlp.fc1", m, 4 * m)
      linear(f"{block}.mlp.fc2", 4 * m, m)
      norm(f"{block}.norm1", m)
      norm(f"{block}.norm2", m)
  time = "image_decoder.time_cond_embed"
  for name, num_in in (("timestep_proj", 256), ("condition_proj", m)):
    linear(f"{time}.{name}.fc1", num_in, width)
    linear(f"{time}.{name}.fc2", width, width)
  for block in (f"image_decoder.blocks.{i}" for i in range(config.num_head_layers)):
    linear(f"{block}.norm1.proj", width, 3 * width)
    linear(f"{block}.proj.fc1", width, width)
    linear(f"{block}.proj.fc2", width, width)
    norm(f"{block}.norm2", width)
  return {name: rng.normal(size=shape).astype(np.float32) for name, shape in made.items()}


def test_public_labels_become_those_of_class_names():
  encoder = ClassTokenizer(NAMES, 1)
  config = NovaConfig(
    d_model=16, num_heads=1, num_video_layers=1, num_image_layers=2, head_mlp_dim=8,
    num_head_layers=1, mixer_rank=None, has_motion=False, time_base=1,
    vocabulary_size=encoder.vocabulary_size, text_length=1,
  )  # fmt: skip
  tensors = public_tensors(config, len(NAMES) + 1)
  values = {"text_token_dim": None, "video_base_size": [1, 4, 4]}
  assert convert.config_of(values, tensors, num_heads=1) == config
  net = network_of(config, convert.import_params(tensors, config))
  table, scale, bias = (
    tensors[f"label_embed.{name}"] for name in ("weight", "norm.weight", "norm.bias")
  )
  # Public labels count from 0, and the last one is for dropped ones.
  for name, label in (*((name, i) for i, name in enumerate(NAMES)), ("", len(NAMES))):
    row = table[label]
    expected = (row - row.mean()) / np.sqrt(row.var() + 1e-5) * scale + bias
    found = net.temporal.prefix(jnp.asarray(encoder.encode(name))[None], None, jnp.float32)
    np.testing.assert_allclose(found[0, 0], expected, atol=1e-5)
  del tensors["label_embed.norm.bias"]
  with pytest.raises(ValueError, match=r"missing: label_embed\.norm\.bias"):
    convert.import_params(tensors, config)
  names = flatten(template_of(config).shapes)
  assert not any("padding" in name or "motion" in name for name in names)


def class_config(folder, **changes):
  settings = {"tokenizer": "classes", "classes": NAMES, "length": 1}
  config = make_config(text=settings, **changes)
  config.data.update(source="folder", path=str(folder), num_frames=3)
  config.report.num_clips = 0
  config.sampling.min_guidance = 1.0
  return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Videos of three classes."""
  folder = tmp_path_factory.mktemp("classes")
  for i, name in enumerate(NAMES):
    write_video(folder / name / "a.mp4", 24, 8, value=i)
  return folder


@pytest.fixture(scope="module")
def workdir(folder, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("workdir") / "run"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run, "start_log", lambda path: None)
    patch.setattr(NovaTask, "media", lambda *_: {})
    run.Run(class_config(folder), workdir).train()
  return workdir


def test_classes_are_trained_and_sampled(workdir, tmp_path, capsys):
  flags = [f"--workdir={workdir}", f"--out={tmp_path}", "--num_samples=1", "--guidance=3"]
  assert sample.main([*flags, "--class_id=1"]) == 0, capsys.readouterr().err
  assert len(list(tmp_path.glob("*.mp4"))) == 1
  assert sample.main([*flags, "--class_id=3"]) == 2
  assert "has 3 classes, from 0" in capsys.readouterr().err
  model = load_model(workdir)
  with pytest.raises(ValueError, match="The class 'dot' is unknown; did you mean 'dog'"):
    model.sample(["dot"])


def test_settings_that_do_not_fit_classes_are_named(folder, tmp_path):
  for changes, message in (
    ({"text.length": 4}, r"a class is one token: set text\.length = 1"),
    ({"text.classes": ()}, r"text\.classes must list the names"),
  ):
    with pytest.raises(ValueError, match=message):
      parse.finalize(class_config(folder, **changes))
  others = class_config(folder, **{"text.classes": ("cow", "pig", "hen")})
  with pytest.raises(ValueError, match="caption cannot be encoded"):
    run.Run(others, tmp_path / "run")
