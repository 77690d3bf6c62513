"""Keys and configs of public continuous autoencoders, and what is refused."""

import jax
import numpy as np
import pytest
from public_kl import public_tensors, random_params

from videoar_jax.tokenizers.kl import convert
from videoar_jax.tokenizers.kl.layouts import ImageKLConfig, OpenSoraConfig

VALUES = {
  "_class_name": "AutoencoderKL",
  "_diffusers_version": "0.30.0",
  "in_channels": 3,
  "down_block_types": ["DownEncoderBlock2D"] * 4,
  "up_block_types": ["UpDecoderBlock2D"] * 4,
  "block_out_channels": [2, 2, 4, 4],
  "layers_per_block": 1,
  "latent_channels": 3,
  "norm_num_groups": 2,
  "scaling_factor": 0.13025,
  "shift_factor": None,
}
VIDEO = VALUES | {
  "_class_name": "AutoencoderKLOpenSora",
  "down_block_types": ["DownEncoderBlock2D"] * 2 + ["DownEncoderBlock3D"] * 2,
  "up_block_types": ["UpDecoderBlock3D"] * 4,
  "shift_factor": 0.25,
}


def test_config_of():
  sizes = {"block_channels": (2, 2, 4, 4), "num_blocks": 1, "num_channels": 3, "num_groups": 2}
  image = ImageKLConfig(**sizes, scaling_factor=0.13025)
  assert convert.config_of(VALUES) == ("kl_image", image)
  video = OpenSoraConfig(**sizes, scaling_factor=0.13025, shift_factor=0.25)
  assert convert.config_of(VIDEO) == ("kl_opensora", video)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"_class_name": "VQModel"}, "'VQModel'.*known are AutoencoderKL, AutoencoderKLOpenSora"),
    ({"act_fn": "relu"}, "act_fn='relu', must be 'silu'"),
    ({"use_quant_conv": False}, "use_quant_conv=False, must be True"),
    ({"latents_mean": [0.1]}, r"latents_mean=\[0\.1\], must be None"),
    ({"down_block_types": ["DownEncoderBlock3D"] * 4}, "down_block_types=.*must be"),
    ({"norm_num_groups": 3}, "num_groups=3 does not divide"),
  ],
)
def test_other_settings_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    convert.config_of(VALUES | changes)
  if "_class_name" in changes:
    return
  with pytest.raises(ValueError, match="block_out_channels and latent_channels missing"):
    convert.config_of({"_class_name": "AutoencoderKL"})


@pytest.mark.parametrize("values", [VALUES, VIDEO])
def test_keys(values):
  family, config = convert.config_of(values)
  params = random_params(family, config)
  tensors = public_tensors(config, params)
  jax.tree.map(np.testing.assert_array_equal, convert.import_params(tensors, config), params)
  # Older checkpoints name the layers of the attention otherwise, and have convolutions there.
  old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
  for new, name in old.items():
    for key in [key for key in tensors if f".{new}." in key]:
      value = tensors.pop(key)
      value = value[..., None, None] if value.ndim == 2 else value
      tensors[key.replace(f".{new}.", f".{name}.")] = value
  jax.tree.map(np.testing.assert_array_equal, convert.import_params(tensors, config), params)


def test_wrong_keys_are_listed_together():
  family, config = convert.config_of(VALUES)
  tensors = public_tensors(config, random_params(family, config))
  del tensors["quant_conv.bias"]
  tensors["encoder.more.weight"] = np.zeros(2, np.float32)
  tensors["decoder.conv_out.weight"] = tensors["decoder.conv_out.weight"][..., None]
  with pytest.raises(ValueError, match="3 keys are wrong") as raised:
    convert.import_params(tensors, config)
  for text in (
    "missing quant_conv.bias (6,)",
    "unexpected encoder.more.weight (2,)",
    "mis-shaped decoder.conv_out.weight (3, 2, 3, 3, 1), needs (3, 2, 3, 3)",
  ):
    assert text in str(raised.value)
  # Of a video network: its kernels have an axis more.
  family, video = convert.config_of(VIDEO)
  with pytest.raises(ValueError, match=r"mis-shaped encoder\.conv_out\.weight \(6, 4, 3, 3, 3\)"):
    convert.import_params(public_tensors(video, random_params(family, video)), config)


def test_values_that_are_no_weights_are_named():
  family, config = convert.config_of(VALUES)
  tensors = public_tensors(config, random_params(family, config))
  whole = tensors["quant_conv.bias"]
  tensors["quant_conv.bias"] = np.full(6, np.nan, np.float32)
  with pytest.raises(ValueError, match=r"quant_conv\.bias holds values that are not finite"):
    convert.import_params(tensors, config)
  tensors["quant_conv.bias"] = whole.astype(np.int32)
  with pytest.raises(ValueError, match=r"quant_conv\.bias is of type int32"):
    convert.import_params(tensors, config)
