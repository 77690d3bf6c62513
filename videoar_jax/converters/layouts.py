"""The layouts of public models, by name: networks, tokenizers and settings, without weights.

For plans, and for models of random weights, which behave like the public ones in all but what they
show. Source: INFINITY sections 1 and 5, S2 and S9; NOVA sections 2 and 13.
"""

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from videoar_jax.converters import infinity, nova
from videoar_jax.experiment import model_folder, parse
from videoar_jax.experiment.schema import RunConfig
from videoar_jax.interop import tensors
from videoar_jax.models.families import FAMILIES
from videoar_jax.models.infinity.config import InfinityConfig
from videoar_jax.models.infinity_star.config import InfinityStarConfig
from videoar_jax.models.nova.config import NovaConfig
from videoar_jax.tokenizers import files
from videoar_jax.tokenizers.base import TokenizerConfig
from videoar_jax.tokenizers.bsq.config import BSQConfig
from videoar_jax.tokenizers.bsq.infinity import NUM_GROUPS
from videoar_jax.tokenizers.files import Saved
from videoar_jax.tokenizers.kl.layouts import ImageKLConfig, OpenSoraConfig
from videoar_jax.tokenizers.star.config import StarConfig

_T5, _PHI = 2048, 2560  # Widths of the features of flan-T5-xl and of Phi-2.
FEATURES = "text_encoder.safetensors"


@dataclasses.dataclass(frozen=True)
class PublicLayout:
  """The layout of a public model.

  Attributes:
    config: of the network.
    settings: config of a run of it, without paths.
    tokenizer: description of its tokenizer.
  """

  config: Any
  settings: dict
  tokenizer: Saved


def public_layout(name: str) -> PublicLayout:
  """Returns a layout.

  Raises:
    ValueError: there is none of that name; lists those that there are.
  """
  if name not in NAMES:
    raise ValueError(f"there is no public model {name!r}; there are {', '.join(NAMES)}")
  family, *rest = _NETWORKS[name]
  return {"infinity": _infinity, "infinity_star": _star, "nova": _nova}[family](name, *rest)


@contextlib.contextmanager
def run_of(name: str) -> Iterator[RunConfig]:
  """Makes the run of a public model that has no weights, while the context is open.

  Raises:
    ValueError: as `public_layout`.
  """
  layout = public_layout(name)
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(scratch)
    tokenizer, features = folder / model_folder.TOKENIZER, folder / FEATURES
    files.save_description(tokenizer, layout.tokenizer)
    tensors.write(features, {"": np.zeros((1, layout.config.text_dim), np.float32)})
    text = layout.settings["text"] | {"tokenizer": str(features)}
    paths = {"frozen_tokenizer": str(tokenizer), "tokenizer": {}, "text": text}
    yield parse.finalize(layout.settings | paths)


def _infinity(name: str, size: str, num_bits: int, stride: int) -> PublicLayout:
  sizes = FAMILIES["infinity"].sizes[size]
  config = InfinityConfig(**sizes, num_bits=num_bits, text_dim=_T5)
  # As many levels halve the frame as the stride takes.
  multipliers = {16: (1, 2, 4, 4, 4), 8: (1, 2, 4, 4)}[stride]
  tokenizer = BSQConfig(
    num_bits=num_bits,
    base_channels=128,
    multipliers=multipliers,
    num_encoder_blocks=2,
    num_decoder_blocks=3,
    strides=((1, 2),) * (len(multipliers) - 1),
    num_groups=NUM_GROUPS,
  )
  return _layout(name, config, infinity.image_settings(config), "bsq", tokenizer)


def _star(name: str, size: str) -> PublicLayout:
  config = InfinityStarConfig(**FAMILIES["infinity_star"].sizes["qwen8b"], text_dim=_T5)
  settings = infinity.video_settings(config, size, infinity.STAR_FRAMES[0])
  return _layout(name, config, settings, "star", StarConfig())


def _nova(name: str, size: str, side: int | tuple[int, int], is_video: bool) -> PublicLayout:
  sizes = FAMILIES["nova"].sizes[size] | {"text_dim": _PHI, "text_length": 256}
  if is_video:
    config = NovaConfig(**sizes, time_base=16, mixer_rank=24, has_motion=True, noise="ddpm")
    tokenizer: TokenizerConfig = OpenSoraConfig(tiling=True)
  else:
    config = NovaConfig(**sizes, time_base=1, mixer_rank=None, has_motion=False, noise="flow")
    tokenizer = ImageKLConfig(scaling_factor=0.13025)
  settings = nova.settings_of({"image_size": side}, config)
  return _layout(name, config, settings, "kl_opensora" if is_video else "kl_image", tokenizer)


def _layout(
  name: str, config: Any, settings: dict, family: str, tokenizer: TokenizerConfig
) -> PublicLayout:
  source = f"random weights, with the layout of {name}"
  return PublicLayout(config, settings, Saved(family, tokenizer, source))


# Family, then what its function takes.
_NETWORKS: dict[str, tuple] = {
  "infinity_125m": ("infinity", "125m", 16, 16),
  "infinity_2b": ("infinity", "2b", 32, 16),
  "infinity_8b": ("infinity", "8b", 14, 8),
  "infinity_star_480p": ("infinity_star", "480p"),
  "infinity_star_720p": ("infinity_star", "720p"),
  "nova_d48w768_1024": ("nova", "d48w768", 1024, False),
  "nova_d48w1024_1024": ("nova", "d48w1024", 1024, False),
  "nova_d48w1536_1024": ("nova", "d48w1536", 1024, False),
  "nova_d48w1024_480p": ("nova", "d48w1024-t2v", (480, 768), True),
}
NAMES = tuple(_NETWORKS)
