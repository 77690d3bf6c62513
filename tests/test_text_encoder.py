"""A run on prompts that a pretrained text encoder encodes, through the command line."""

import json
import re
import shutil

import numpy as np
import pytest
from commands import command, run
from tiny_encoders import T5, write_encoder

from videoar_jax import convert, sample
from videoar_jax.interop import tensors

pytest.importorskip("tokenizers")
# Four runs; tests/experiment/test_text_files.py has their parts.
pytestmark = pytest.mark.slow

# Sprites' captions are mostly words that the tiny tokenizer does not know: <unk>.
PROMPT = "a red circle moves left"
STEPS = [
  "--config.stages=('tokenizer','generator')",
  "--config.report.num_clips=0",
  "--config.stage.tokenizer.loop.num_steps=2",
  "--config.stage.generator.loop.num_steps=4",
  "--config.text.length=24",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    folder = tmp_path_factory.mktemp("text")
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    yield folder


@pytest.fixture(scope="module")
def trained(place):
  """A folder with a text encoder, `t5`, and a run on it, `run`."""
  write_encoder(place / "t5")
  train(place, "run")
  return place


def train(place, name):
  done = run(command(place / name, *STEPS, f"--config.text.tokenizer={place / 't5'}"))
  assert done.returncode == 0, done.stderr[-3000:]


def losses_of(workdir):
  lines = (workdir / "generator" / "metrics.jsonl").read_text().splitlines()
  return {record["step"]: record["loss"] for record in map(json.loads, lines)}


def test_a_run_resumes(trained):
  shutil.copytree(trained / "run", trained / "copy")
  shutil.rmtree(trained / "copy" / "generator" / "checkpoints" / "4")
  (trained / "copy" / "generator" / "metrics.jsonl").unlink()
  train(trained, "copy")
  losses = losses_of(trained / "run")
  assert sorted(losses) == [1, 2, 3, 4]
  assert losses_of(trained / "copy") == {step: losses[step] for step in (3, 4)}


def sampled(place, out, *flags):
  """Returns the exit status of `sample`, and the bytes of the clip."""
  given = [f"--workdir={place / 'run'}", f"--prompt={PROMPT}", "--num_samples=1", *flags]
  status = sample.main([*given, f"--out={place / out}"])
  return status, [file.read_bytes() for file in (place / out).glob("*.mp4")]


def test_samples_need_the_encoder_or_features(trained, capsys):
  """Those of features that were written ahead are the same."""
  own = sampled(trained, "own")
  assert own[0] == 0 and len(own[1]) == 1
  (trained / "prompts.txt").write_text(PROMPT + "\n")
  given = [f"--text_encoder={trained / 't5'}", f"--prompts_file={trained / 'prompts.txt'}"]
  features = trained / "features.safetensors"
  assert convert.main(["text_features", *given, f"--out={features}"]) == 0
  said = capsys.readouterr().out
  assert "2 prompts" in said and "config.text.length=6" in said
  (trained / "t5").rename(trained / "moved")
  try:
    assert sampled(trained, "none") == (2, [])
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"text\.tokenizer=.* no features of .*--text_features", line)
    for name, path in (("features", features), ("folder", trained / "moved")):
      assert sampled(trained, name, f"--text_features={path}") == own
    wider = write_encoder(trained / "wider", T5 | {"d_model": 16})
    assert sampled(trained, "wider", f"--text_features={wider}") == (2, [])
    assert "of another network" in capsys.readouterr().err
  finally:
    (trained / "moved").rename(trained / "t5")


def test_features_are_written_ahead(place, capsys):
  folder, prompts = write_encoder(place / "ahead"), place / "some.txt"
  prompts.write_text("a red star\n" + "a " * 9 + "\na red star\n")
  flags = ["text_features", f"--text_encoder={folder}", f"--prompts_file={prompts}", "--length=5"]
  assert convert.main([*flags, f"--out={place / 'x.safetensors'}", "--dtype=bfloat16"]) == 0
  assert "1 prompts were cut to --length=5 tokens" in capsys.readouterr().out
  found = tensors.read(place / "x.safetensors")
  assert {prompt: x.shape for prompt, x in found.items()} == {
    "": (1, 12),
    "a red star": (4, 12),
    " ".join("a" * 9): (5, 12),
  }
  assert {x.dtype.name for x in found.values()} == {"bfloat16"}
  assert convert.main([*flags, f"--out={place / 'many'}"]) == 0
  whole = tensors.read(place / "many" / "00000.safetensors")
  assert np.abs(whole[""] - np.asarray(found[""], np.float32)).max() < 0.05


def test_wrong_flags_are_named(place, capsys):
  folder, prompts = write_encoder(place / "flags"), place / "one.txt"
  prompts.write_text("a red star\n")
  flags = {"text_encoder": folder, "prompts_file": prompts, "out": place / "y.safetensors"}
  for name, value, said in (
    ("text_encoder", place / "nowhere", "--text_encoder=.*nowhere has no config.json"),
    ("prompts_file", place / "nowhere", "--prompts_file=.* cannot be read"),
    ("out", folder, "--out=.* is there already"),
    ("out", "gs://a/b", "--out=gs://a/b is a URL"),
    ("length", 0, "text.length is 0"),
  ):
    changed = flags | {name: value}
    given = ["text_features", *(f"--{key}={x}" for key, x in changed.items())]
    assert convert.main(given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(said, line), line
