"""Folders of tiny text encoders with random weights, as Hugging Face `transformers` saves them."""

import json

import numpy as np
from safetensors.numpy import save_file

from videoar_jax.text.encoders.config import config_of

WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "blue", "star", "moves", "left"]
T5 = {
  "model_type": "t5",
  "vocab_size": 16,
  "d_model": 12,
  "d_kv": 4,
  "d_ff": 20,
  "num_layers": 2,
  "num_heads": 3,
  "relative_attention_num_buckets": 8,
  "relative_attention_max_distance": 10,
  "layer_norm_epsilon": 1e-6,
  "feed_forward_proj": "gated-gelu",
}
UMT5 = T5 | {"model_type": "umt5"}
PHI = {
  "model_type": "phi",
  "vocab_size": 16,
  "hidden_size": 32,
  "intermediate_size": 40,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "partial_rotary_factor": 0.4,
  "rope_theta": 10000.0,
  "layer_norm_eps": 1e-5,
  "hidden_act": "gelu_new",
}


def random_tensors(values, seed=0):
  """Returns the tensors of a checkpoint, drawn at random."""
  generator, config = np.random.default_rng(seed), config_of(values)
  found = {}
  for tensor in config.tensors().values():
    layers = range(config.num_layers) if "{}" in tensor.key else range(1)
    for i in layers:
      array = generator.normal(0, tensor.shape[-1] ** -0.5, tensor.shape).astype(np.float32)
      found[tensor.key.format(i)] = array + 1 if "norm.weight" in tensor.key else array
  return found


def write_tokenizer(path, *, has_end=True):
  """Writes a tokenizer of words; with an end token, as T5's, or without, as Phi's."""
  end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
  template = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}, end],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}, end],
    "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
  }
  vocabulary = {word: i for i, word in enumerate(WORDS)}
  file = {
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": template if has_end else None,
    "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
  }
  path.write_text(json.dumps(file))


def write_encoder(folder, values=T5, seed=0):
  """Writes the folder of a text encoder; returns it."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(json.dumps(values))
  save_file(random_tensors(values, seed), folder / "model.safetensors")
  write_tokenizer(folder / "tokenizer.json", has_end=values["model_type"] != "phi")
  return folder
