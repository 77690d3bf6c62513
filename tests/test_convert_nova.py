"""A public NOVA pipeline makes clips, its tensors are where they belong, mistakes are named."""

import json
import shutil

import numpy as np
import public_nova
import pytest
from public_kl import public_tensors, random_params
from safetensors.numpy import save_file
from tiny_encoders import PHI, random_tensors, write_tokenizer

import videoar_jax
from videoar_jax import convert, sample
from videoar_jax.experiment import model_folder
from videoar_jax.experiment.load import find_run
from videoar_jax.interop import tensors
from videoar_jax.tokenizers.kl import convert as kl

VAE = {
  "_class_name": "AutoencoderKLOpenSora",
  "block_out_channels": [2, 2, 4, 4],
  "layers_per_block": 1,
  "latent_channels": public_nova.CHANNELS,
  "norm_num_groups": 2,
}
HEADS = f"--num_heads={public_nova.HEADS}"


def run(checkpoint, out, capsys, *flags):
  """Returns the exit status and the output."""
  status = convert.main(["nova", f"--checkpoint={checkpoint}", f"--out={out}", *flags])
  said = capsys.readouterr()
  return status, said.out if status == 0 else said.err


def write_vae(folder):
  family, config = kl.config_of(VAE)
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(VAE))
  save_file(
    public_tensors(config, random_params(family, config)),
    folder / "diffusion_pytorch_model.safetensors",
  )


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
  folder = tmp_path_factory.mktemp("public") / "nova"
  public_nova.write_transformer(folder)
  write_vae(folder / "vae")
  return folder


@pytest.fixture(scope="module")
def model(pipeline, tmp_path_factory):
  """Converted, with features of prompts in place of a text encoder."""
  out = tmp_path_factory.mktemp("converted") / "model"
  assert convert.main(["nova", f"--checkpoint={pipeline}", f"--out={out}", HEADS]) == 0
  return out


def test_a_pipeline_makes_clips(model, tmp_path, capsys):
  features = tmp_path / "features.safetensors"
  prompt = np.random.default_rng(0).normal(size=(3, public_nova.TEXT_WIDTH)).astype(np.float32)
  empty = np.zeros((1, public_nova.TEXT_WIDTH), np.float32)
  tensors.write(features, {"": empty, "a fox": prompt})
  flags = [f"--model={model}", "--prompt=a fox", "--num_samples=1", "--num_frames=5"]
  flags += ["--num_ar_steps=2", "--num_diffusion_steps=2", "--motion=3", "--dtype=bfloat16"]
  assert sample.main([*flags, f"--text_features={features}", f"--out={tmp_path / 'clips'}"]) == 0
  assert len(list((tmp_path / "clips").glob("*.mp4"))) == 1
  assert sample.main([*flags, f"--out={tmp_path / 'none'}"]) == 2
  assert "--text_features" in capsys.readouterr().err
  facts = json.loads((model / "config.json").read_text())
  network = facts["generator"]
  assert (network["noise"], network["noise_offset"], network["mixer_rank"]) == ("ddpm", 1, 3)
  assert facts["data"]["resolution"] == [32, 64] and facts["data"]["num_frames"] == 33
  # The public network was trained on latents of tiles.
  facts = json.loads((model / model_folder.TOKENIZER / "tokenizer.json").read_text())
  assert facts["family"] == "kl_opensora" and facts["config"]["tiling"]


def test_weights_keep_their_type_and_layout(pipeline, model, tmp_path, capsys):
  found = tensors.read(model / model_folder.WEIGHTS)
  public = public_nova.tensors()
  np.testing.assert_array_equal(
    found["temporal.mixer.up.kernel"], public["video_encoder.mixer.proj.weight"].T
  )
  key = public["image_encoder.blocks.1.attn.qkv.weight"][public_nova.WIDTH :][: public_nova.WIDTH]
  np.testing.assert_array_equal(found["spatial.decoder.attention.key.kernel"][0], key.T)
  halves = tmp_path / "half"
  public_nova.write_transformer(
    halves, {name: value.astype(np.float16) for name, value in public.items()}, num_files=1
  )
  status, said = run(halves, tmp_path / "out", capsys, HEADS)
  assert status == 0 and "missing: vae/" in said and "missing: text_encoder/" in said
  half = tensors.read(tmp_path / "out" / model_folder.WEIGHTS)
  assert half["temporal.mixer.up.kernel"].dtype == np.float16
  with pytest.raises(ValueError, match="holds no converted tokenizer"):
    videoar_jax.load_model(tmp_path / "out")


def test_the_text_encoder_comes_along(pipeline, tmp_path, capsys):
  pytest.importorskip("tokenizers")
  encoder = tmp_path / "phi" / "text_encoder"
  encoder.mkdir(parents=True)
  values = PHI | {"hidden_size": 16, "partial_rotary_factor": 0.5}
  (encoder / "config.json").write_text(json.dumps(values))
  tensors.write(encoder / "model.safetensors", random_tensors(values))
  (encoder.parent / "tokenizer").mkdir()
  write_tokenizer(encoder.parent / "tokenizer" / "tokenizer.json", has_end=False)
  status, said = run(pipeline, tmp_path / "out", capsys, HEADS, f"--text_encoder={encoder}")
  assert status == 2 and "features of width 16, but the model takes 12" in said
  assert not (tmp_path / "out").exists()
  values |= {"hidden_size": public_nova.TEXT_WIDTH, "num_attention_heads": 1}
  (encoder / "config.json").write_text(json.dumps(values))
  tensors.write(encoder / "model.safetensors", random_tensors(values))
  status, said = run(pipeline, tmp_path / "out", capsys, HEADS, f"--text_encoder={encoder}")
  assert status == 0 and "missing" not in said, said
  names = {file.name for file in (tmp_path / "out" / "text_encoder").iterdir()}
  assert names == {"config.json", "model.safetensors", "tokenizer.json"}
  _, found = find_run(tmp_path / "out")
  assert found.text.encoder.encode("a red star").any()
  (encoder.parent / "tokenizer" / "tokenizer.json").unlink()
  status, said = run(pipeline, tmp_path / "rest", capsys, HEADS, f"--text_encoder={encoder}")
  assert status == 0 and "missing: tokenizer.json of the text encoder" in said


def test_a_network_of_classes_is_converted(pipeline, tmp_path, capsys):
  folder, num = tmp_path / "classes", 5
  public = {k: x for k, x in public_nova.tensors().items() if not k.startswith("text_embed")}
  public["label_embed.weight"] = np.ones((num + 1, public_nova.WIDTH), np.float32)
  for end in ("weight", "bias"):
    public[f"label_embed.norm.{end}"] = np.ones(public_nova.WIDTH, np.float32)
  public_nova.write_transformer(folder, public)
  values = public_nova.CONFIG | {"text_token_dim": None}
  (folder / "transformer" / "config.json").write_text(json.dumps(values))
  shutil.copytree(pipeline / "vae", folder / "vae")
  status, said = run(folder, tmp_path / "out", capsys, HEADS)
  assert status == 0, said
  _, found = find_run(tmp_path / "out")
  assert len(found.text.classes) == num


def test_what_is_wrong_is_named(pipeline, tmp_path, capsys):
  def refused(folder, *flags):
    status, said = run(folder, tmp_path / "out", capsys, HEADS, *flags)
    assert status == 2 and said.count("\n") == 1 and not (tmp_path / "out").exists()
    return said

  assert "has no folder transformer/" in refused(tmp_path)
  status, said = run(pipeline, tmp_path / "out", capsys)
  assert status == 2 and "heads of a transformer of width 32 are not known" in said
  public = public_nova.tensors()
  public["extra"] = public.pop("mask_embed.bos_token")
  public["image_decoder.head.bias"] = public["image_decoder.head.bias"][:-1]
  public_nova.write_transformer(tmp_path / "wrong", public)
  said = refused(tmp_path / "wrong")
  for text in (
    "missing: mask_embed.bos_token",
    "unexpected: extra",
    "shape: image_decoder.head.bias is (15,), which does not make (16,)",
  ):
    assert text in said
  for name, looks in (
    ("layer.weight", "its names begin with layer.weight"),
    ("pos_start", "it looks like Infinity's transformer"),
    ("encoder.conv_in.weight", "it looks like a continuous autoencoder"),
  ):
    public_nova.write_transformer(tmp_path / name, {name: np.zeros((2, 2), np.float32)})
    said = refused(tmp_path / name)
    assert "this is not a NOVA transformer" in said and looks in said
  public_nova.write_transformer(tmp_path / "noise", num_files=1)
  for change, text in (
    ({"_class_name": "PNDMScheduler"}, "'PNDMScheduler' is unknown; known are DDPMScheduler"),
    ({"prediction_type": "v_prediction"}, "prediction_type='v_prediction' is not supported"),
    ({"timestep_spacing": "odd"}, "timestep_spacing: "),
    ({"variance_type": "fixed_large"}, "variance_type='fixed_large' is not supported"),
  ):
    public_nova.write_scheduler(tmp_path / "noise", public_nova.DDPM | change)
    assert text in refused(tmp_path / "noise")
  public_nova.write_scheduler(tmp_path / "noise", public_nova.DDPM)
  for change in ({"image_base_size": [3, 4]}, {"video_base_size": [9, 1, 4]}, {"image_size": 64}):
    values = json.dumps(public_nova.CONFIG | change)
    (tmp_path / "noise" / "transformer" / "config.json").write_text(values)
    assert "does not fit image_size=" in refused(tmp_path / "noise")
  (tmp_path / "noise" / "transformer" / "config.json").write_text("{}")
  assert "config.json has no video_base_size" in refused(tmp_path / "noise")
