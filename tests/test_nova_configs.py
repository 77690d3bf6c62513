"""The configs of NOVA's runs: shapes and sizes agree with the public ones."""

import importlib

import jax
import numpy as np
import pytest

from configs import nova_t2i, nova_t2v
from videoar_jax.experiment.parse import finalize
from videoar_jax.interop import tensors
from videoar_jax.models.nova import work
from videoar_jax.models.nova.network import template_of
from videoar_jax.nn.layers import count_parameters
from videoar_jax.parallel.hardware import parse_topology
from videoar_jax.parallel.mesh import parse_mesh
from videoar_jax.planning.pod import Pod
from videoar_jax.planning.step_plan import StepPlan
from videoar_jax.tokenizers.families import TOKENIZERS
from videoar_jax.tokenizers.files import Saved, save_tokenizer
from videoar_jax.train.state import Template


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """Arguments of a config, with tiny autoencoders, and features in place of a text encoder."""
  root = tmp_path_factory.mktemp("folders")
  text = root / "text.safetensors"
  tensors.write(text, {"": np.zeros((1, 8), np.float32)})
  found = {}
  for name in ("kl_image", "kl_opensora"):
    family = TOKENIZERS[name]
    config = family.network(block_channels=(4, 4, 4, 4), num_blocks=1, num_groups=2)
    template = Template.of(family.make_module(config))
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), template.shapes)
    save_tokenizer(root / name, Saved(name, config, "made up"), params)
    found[name] = f"data=shards,vae={root / name},text={text}"
  return found


def transformer_parameters(run):
  """Returns how many a network has without its text's padding and projection."""
  shapes = template_of(run.generator).shapes
  text = count_parameters({k: v for k, v in shapes["temporal"]["text"].items() if k != "norm"})
  return count_parameters(shapes) - text


@pytest.mark.parametrize(
  ("size", "resolution", "tokens", "millions"),
  [
    ("d48w768", 1024, (1024, 4096), 363.95 - 1.97),
    ("d48w1024", 1024, (1024, 4096), 645.69 - 2.62),
    ("d48w1536", 1024, (1024, 4096), 1449.84 - 3.93),
    ("d48w1024", 512, (256, 1024), 641.49 - 2.62),
  ],
)
def test_images_are_the_public_ones(folders, size, resolution, tokens, millions):
  """Parameters as in the public checkpoints, without the buffer and projection of Phi-2's text."""
  run = finalize(nova_t2i.get_config(f"size={size},resolution={resolution},{folders['kl_image']}"))
  sizes = work.sizes_of(run, run.stages[0])
  assert (sizes.num_frames, sizes.prefix, sizes.slot, sizes.frame) == (1, 256, *tokens)
  assert run.generator.head_dim == {"d48w768": 64, "d48w1024": 64, "d48w1536": 96}[size]
  assert run.generator.noise == ("ddpm" if resolution == 512 else "flow")
  assert transformer_parameters(run) / 1e6 == pytest.approx(millions, abs=0.01)
  assert run.stages[0].loop.batch_size == 1024 and not run.generator.has_motion


def test_videos_are_the_public_ones_and_start_from_images(folders):
  init = "init=t2i.safetensors"
  run = finalize(nova_t2v.get_config(f"{init},{folders['kl_opensora']}"))
  stage, sizes = run.stages[0], work.sizes_of(run, run.stages[0])
  assert (sizes.num_frames, sizes.slot, sizes.frame) == (9, 360, 1440) and sizes.temporal == 3498
  assert transformer_parameters(run) / 1e6 == pytest.approx(644.19 - 2.62, abs=0.01)
  assert (stage.init.from_, stage.init.missing) == ("t2i.safetensors", "random")
  images = finalize(nova_t2i.get_config(f"resolution=512,{folders['kl_image']}"))
  # What images lack are motion tokens and the mixer alone; the rest has the same shapes.
  own, other = (
    {
      "/".join(part.key for part in path): x.shape
      for path, x in jax.tree_util.tree_leaves_with_path(template_of(each.generator).shapes)
    }
    for each in (run, images)
  )
  added = {name for name in own if name not in other}
  assert {tuple(name.split("/")[:2]) for name in added} == {
    ("temporal", "motion"),
    ("temporal", "mixer"),
  }
  assert other == {name: shape for name, shape in own.items() if name not in added}


def test_what_is_missing_is_named():
  for module in (nova_t2i, nova_t2v):
    with pytest.raises(ValueError, match="vae= is missing"):
      module.get_config("data=x,text=y")
  with pytest.raises(ValueError, match="resolution=768 must be 512 or 1024"):
    nova_t2i.get_config("resolution=768")


@pytest.mark.parametrize("name", ["nova_t2i", "nova_t2v"])
def test_commands_of_the_docstrings_name_arguments_that_there_are(name):
  module = importlib.import_module(f"configs.{name}")
  words = [word for word in module.__doc__.split() if word.startswith("--config=")]
  assert words
  for word in words:
    path, _, arguments = word.partition(":")
    stem = path.removeprefix("--config=configs/").removesuffix(".py")
    importlib.import_module(f"configs.{stem}").get_config(arguments)


@pytest.mark.parametrize(
  ("name", "arg", "vae", "pod", "mesh"),
  [
    ("nova_t2v", "", "kl_opensora", "v5p:4x4x4", "fsdp:64"),
    ("nova_t2v", "", "kl_opensora", "v5p:4x4x4", "fsdp:16,sequence:2,tensor:2"),
    ("nova_t2i", "size=d48w1536,", "kl_image", "v5e:16x16", "fsdp:256"),
  ],
)
def test_they_are_planned_on_pods(folders, name, arg, vae, pod, mesh):
  """Every parameter divides over the devices, and a step fits into their memory by estimate."""
  config = importlib.import_module(f"configs.{name}").get_config(arg + folders[vae])
  run, pod = finalize(config), Pod(pod, *parse_topology(pod), is_compiled=False)
  plan = StepPlan.of(run, run.stages[0], pod, parse_mesh(mesh))
  shardings = jax.tree.leaves(plan.trainer.shardings["params"])
  assert len(shardings) == len(jax.tree.leaves(plan.trainer.template.shapes))
  cost = plan.estimate()
  assert 0.02 < cost.memory / pod.chip.device_memory < 1
  # Six for each parameter of the temporal encoder alone.
  tokens = run.stages[0].loop.batch_size * run.num_tokens(run.stages[0], run.stages[0].shape)
  assert cost.flops > 6 * tokens * run.generator.num_video_layers * 12 * run.generator.d_model**2
