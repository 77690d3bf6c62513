"""`config.json` as the first version wrote it for its configs."""


def _small_loop(num_steps, batch_size, learning_rate, media_every):
  return {
    "batch_size": batch_size,
    "ema_decay": 0.99,
    "media_every": media_every,
    "num_steps": num_steps,
    "optimizer": {
      "final_fraction": 0.02,
      "kind": "muon",
      "learning_rate": learning_rate,
      "muon_steps": 4,
      "warmup_steps": 50,
      "weight_decay": 0.0001,
    },
    "save_every": 200,
  }


_SMALL_LOSS = {
  "absolute": 0.0,
  "commitment": 0.02,
  "entropy": 0.0,
  "remainder": 0.05,
  "scale_dropout": 0.4,
  "squared": 1.0,
}
_SMALL_TOKENIZER = {
  "base_channels": 16,
  "multipliers": [3, 4, 4],
  "num_bits": 16,
  "num_decoder_blocks": 1,
  "num_encoder_blocks": 1,
  "num_groups": 4,
  "patch_size": 4,
  "strides": [[2, 2], [2, 1]],
}
_TINY_GENERATOR = {
  "depth": 4,
  "dtype": "float32",
  "head_width": 64,
  "is_scanned": False,
  "mlp_width": 384,
  "num_heads": 2,
  "num_kv_heads": 2,
  "remat": "none",
  "width": 128,
}

QUICKSTART = {
  "data": {
    "frame_rate": 4.0,
    "num_frames": 9,
    "path": None,
    "resolution": [64, 64],
    "source": "sprites",
  },
  "generator": _TINY_GENERATOR
  | {
    "past": "final",
    "previous": "all",
    "rope_base": 1000.0,
    "rope_grid": "latent",
    "rope_is_interleaved": True,
  },
  "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
  "report": {"num_clips": 64, "num_prompts": 128},
  "sampling": {"guidance": "constant:3", "temperature": 0.7, "top_p": 1.0},
  "schedule": "1 2 4 8",
  "seed": 0,
  "stage": {
    "generator": {
      "kind": "generator",
      "loop": _small_loop(2100, 4, 0.015, 300),
      "loss": {
        "corruption": {"delta": 0.01, "has_inheritance": True, "p_max": 0.1, "p_min": 0.0},
        "scale_weighting": "sqrt",
      },
    },
    "images": {
      "kind": "tokenizer",
      "loop": _small_loop(550, 16, 0.03, 300),
      "loss": _SMALL_LOSS,
      "num_frames": 1,
    },
    "tokenizer": {
      "kind": "tokenizer",
      "loop": _small_loop(220, 4, 0.01, 300),
      "loss": _SMALL_LOSS,
    },
  },
  "stages": ["images", "tokenizer", "generator"],
  "text": {"length": 16, "tokenizer": "words"},
  "tokenizer": _SMALL_TOKENIZER,
}

ABLATION = {
  "data": {"frame_rate": 4.0, "num_frames": 9, "resolution": [64, 64], "source": "sprites"},
  "generator": _TINY_GENERATOR | {"past": "scales", "positions": "rope"},
  "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
  "sampling": {"guidance": "constant:2", "temperature": 0.7, "top_p": 1.0},
  "schedule": "1 2 4 8",
  "seed": 0,
  "stage": {
    "cache": {"kind": "cache", "num_clips": 4096},
    "generator": {
      "kind": "generator",
      "loop": _small_loop(1000, 4, 0.015, 1000),
      "loss": {
        "corruption": {"delta": 0.01, "has_inheritance": True, "p_max": 0.25, "p_min": 0.0},
        "p_frame_mask": 0.0,
        "scale_weighting": "sqrt",
      },
    },
    "images": {
      "kind": "tokenizer",
      "loop": _small_loop(550, 16, 0.03, 1000),
      "loss": _SMALL_LOSS,
      "num_frames": 1,
    },
    "tokenizer": {
      "kind": "tokenizer",
      "loop": _small_loop(270, 4, 0.01, 1000),
      "loss": _SMALL_LOSS,
    },
  },
  "stages": ["images", "tokenizer", "cache", "generator"],
  "text": {"length": 16, "tokenizer": "words"},
  "tokenizer": _SMALL_TOKENIZER,
}

_TOKENIZER_STAGE = {
  "images": {"batch_size": 512, "share": 0.2},
  "inflate": {"path": "image", "rest": "zeros"},
  "kind": "tokenizer",
  "loop": {
    "batch_size": 128,
    "ema_decay": 0.9999,
    "media_every": 2000,
    "num_steps": 186270,
    "optimizer": {
      "kind": "adamw",
      "learning_rate": 0.0001,
      "warmup_steps": 5000,
      "weight_decay": 0.0001,
    },
    "save_every": 2000,
  },
  "loss": {
    "absolute": 1.0,
    "adversarial": {
      "discriminator": {
        "base_channels": 64,
        "multipliers": [2, 4, 4, 4],
        "patch_size": 1,
        "strides": [[1, 2], [2, 2], [2, 2], [1, 2]],
      },
      "is_adaptive": True,
      "kind": "non_saturating",
      "lecam": 0.001,
      "lecam_decay": 0.999,
      "optimizer": {"b1": 0.5, "b2": 0.9, "learning_rate": 0.0001, "weight_decay": 0.0},
      "r1": 0.0,
      "start_step": 10000,
      "weight": 0.1,
    },
    "commitment": 0.25,
    "entropy": 0.01,
    "perceptual": 1.0,
    "perceptual_frames": 4,
    "perceptual_weights": None,
    "remainder": 0.0,
    "squared": 0.0,
  },
}

TOKENIZER_UCF101 = {
  "data": {
    "clips_per_file": 1,
    "frame_rate": 8.0,
    "num_frames": 17,
    "path": "clips",
    "resolution": [128, 128],
    "source": "folder",
  },
  "mesh": {"data": 1, "fsdp": -1, "tensor": 1},
  "report": {"num_clips": 64},
  "schedule": "1 2 3 4 6 8",
  "seed": 0,
  "stage": {"tokenizer": _TOKENIZER_STAGE},
  "stages": ["tokenizer"],
  "text": {"length": 72},
  "tokenizer": {"num_bits": 48},
}


def _t2v_stage(num_steps, batch_size, num_frames, resolution, mixture):
  return {
    "data": {"num_frames": num_frames, "resolution": resolution},
    "kind": "generator",
    "loop": {
      "batch_size": batch_size,
      "ema_decay": 0.9999,
      "media_every": 5000,
      "num_steps": num_steps,
      "on_nan": "skip",
      "optimizer": {
        "kind": "adamw",
        "learning_rate": 0.0001,
        "warmup_steps": 2000,
        "weight_decay": 0.05,
      },
      "save_every": 1000,
      "spike": 3.0,
    },
    "loss": {
      "corruption": {"delta": 0.01, "has_inheritance": True, "p_max": 0.25, "p_min": 0.0},
      "p_frame_mask": 0.1,
    },
    "mixture": mixture,
  }


def _t2v_parts(weight, pixels):
  ratios = [0.571, 1.0, 1.75]
  images = {"aspect_ratios": ratios, "num_frames": 1, "path": "images", "pixels": pixels}
  videos = {"aspect_ratios": ratios, "num_frames": [17, 33], "pixels": pixels}
  return {"images": images | {"weight": weight}, "videos": videos | {"weight": 1 - weight}}


VIDEOAR_T2V = {
  "data": {
    "frame_rate": 8.0,
    "frame_rates": [8.0, 12.0, 16.0, 24.0],
    "is_randomly_cropped": True,
    "num_frames": 33,
    "num_threads": 16,
    "path": "videos",
    "resolution": [384, 672],
    "source": "shards",
  },
  "generator": {
    "depth": 36,
    "dtype": "bfloat16",
    "head_width": 128,
    "mlp_width": 9728,
    "num_heads": 32,
    "num_kv_heads": 8,
    "width": 2560,
  },
  "mesh": {"data": 1, "fsdp": -1, "tensor": 1},
  "report": {"num_clips": 64},
  "sampling": {"guidance": "t2v", "temperature": 1.0, "top_p": 1.0},
  "schedule": "",
  "seed": 0,
  "stage": {
    "I": _t2v_stage(100_000, 512, 17, [256, 256], _t2v_parts(0.5, 256)),
    "II": _t2v_stage(50_000, 128, 33, [384, 672], _t2v_parts(0.3, 512)),
    "III": _t2v_stage(
      *(20_000, 64, 65, [384, 672]),
      {
        "videos": {
          "aspect_ratios": [0.571, 1.0, 1.75],
          "num_frames": 65,
          "pixels": 512,
          "weight": 1.0,
        }
      },
    ),
    "tokenizer": _TOKENIZER_STAGE
    | {
      "data": {"num_frames": 17, "resolution": [256, 256]},
      "images": {"batch_size": 1, "share": 0.0},
    },
  },
  "stages": ["tokenizer", "I", "II", "III"],
  "text": {"length": 256, "tokenizer": "bytes"},
  "tokenizer": {"num_bits": 48},
}
