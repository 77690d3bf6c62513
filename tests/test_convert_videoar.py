"""Weights of VideoAR by other code: tables of their names, what they make, what is refused."""

import copy
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_runs import make_config

import videoar_jax
from videoar_jax import convert
from videoar_jax.experiment import model_folder, parse
from videoar_jax.train.state import flatten, init_params

LAYERS, WIDTH = 2, 16
CONFIG = f"""
from tiny_runs import make_config

def get_config():
  return make_config(**{{"generator.num_layers": {LAYERS}}})
"""


def run(capsys, *flags):
  """Returns the exit status and the output."""
  status = convert.main(["videoar", *map(str, flags)])
  said = capsys.readouterr()
  return status, said.out if status == 0 else said.err


def foreign(params):
  """Returns a generator's weights as other code might have them, and what the table says of them.

  Queries, keys and values are one tensor, with pairs of neighbours to rotate; there is a logit for
  both values of a bit; prompts have no padding; another network's weights are beside them.
  """
  state = {"net.rope.steps": np.arange(3)}
  table = {}
  for i in range(LAYERS):
    layer = {
      name.removeprefix("blocks."): x[i] for name, x in params.items() if name.startswith("blocks.")
    }
    parts = [layer.pop(f"attention.{name}.kernel").T for name in ("query", "key", "value")]
    parts[:2] = [x.reshape(1, 2, -1, WIDTH).swapaxes(1, 2).reshape(x.shape) for x in parts[:2]]
    state[f"net.layers.{i}.qkv.weight"] = np.concatenate(parts)
    for name, x in layer.items():
      name = name.replace("kernel", "weight").replace("scale", "weight")
      state[f"net.layers.{i}.{name}"] = x.T if x.ndim == 2 else x
  for n, name in enumerate(("query", "key", "value")):
    take = {"take": {"axis": 0, "start": n * WIDTH, "stop": (n + 1) * WIDTH}}
    pairs = [
      {"reshape": [1, WIDTH // 2, 2, WIDTH]},
      {"transpose": [0, 2, 1, 3]},
      {"reshape": [WIDTH, WIDTH]},
    ]
    table[f"blocks.attention.{name}.kernel"] = {
      "from": "layers.{layer}.qkv.weight",
      "shape": [3 * WIDTH, WIDTH],
      "steps": [take, *(pairs if n < 2 else []), {"transpose": [1, 0]}],
    }
  head = params["head.kernel"].T
  state["net.head.weight"] = np.stack([np.ones_like(head), head + 1], 1).reshape(-1, WIDTH)
  table["head.kernel"] = {
    "from": "head.weight",
    "shape": [2 * len(head), WIDTH],
    "steps": [{"reshape": [len(head), 2, WIDTH]}, {"subtract": 1}, {"transpose": [1, 0]}],
  }
  words = params["text_embedding.table"]
  state["net.words.weight"] = words[1:]
  parts = [
    {"fill": 0.5, "shape": [1, WIDTH]},
    {"from": "words.weight", "shape": list(words[1:].shape)},
  ]
  table["text_embedding.table"] = {"join": parts, "axis": 0}
  for name in ("feature_in.kernel", "norm_out.scale", "scale_embedding.table", "start"):
    x, public = params[name], name.rpartition(".")[0]
    public = f"net.{public}.weight" if public else f"net.{name}"
    state[public] = x.T if name.endswith("kernel") else x
  state["net.place_embedding.weight"] = params["place_embedding.table"]
  return state, table


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Weights of this package, the same in files of other code, a config and a table for them."""
  folder = tmp_path_factory.mktemp("foreign")
  settings = parse.finalize(make_config(**{"generator.num_layers": LAYERS}))
  generator, tokenizer = (
    flatten(jax.tree.map(np.array, jax.jit(lambda key, make=make: init_params(make, key))(key)))
    for make, key in (
      (settings.family.make_module(settings), jax.random.key(1)),
      (settings.tokenizer_family.make_module(settings.tokenizer), jax.random.key(2)),
    )
  )
  rng = np.random.default_rng(0)
  for name, x in generator.items():
    if not x.any() or (x == 1).all():  # So that each place shows.
      generator[name] = rng.normal(size=x.shape).astype(np.float32)
  # Of few digits, so that a difference of logits is exact.
  generator["head.kernel"] = rng.integers(-9, 9, generator["head.kernel"].shape).astype(np.float32)
  generator["text_embedding.table"][0] = 0.5
  state, changes = foreign(generator)
  shards = folder / "checkpoint"
  shards.mkdir()
  names = sorted(state)
  parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
  for file, kept in parts.items():
    save_file({name: np.ascontiguousarray(state[name]) for name in kept}, shards / file)
  places = {name: file for file, kept in parts.items() for name in kept}
  (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
  public = {
    name.replace("kernel", "weight").replace("scale", "weight"): (
      x.transpose(4, 3, 0, 1, 2) if x.ndim == 5 else x
    )
    for name, x in tokenizer.items()
  }
  save_file(
    {name: np.ascontiguousarray(x) for name, x in public.items()}, folder / "vae.safetensors"
  )
  (folder / "config.py").write_text(CONFIG)
  return folder, generator, tokenizer, changes


@pytest.fixture(scope="module")
def table(made):
  """The template, edited for the files of other code."""
  folder, _, _, changes = made
  flags = [f"--config={folder / 'config.py'}", f"--template={folder / 'template.json'}"]
  assert convert.main(["videoar", *flags, f"--checkpoint={folder / 'checkpoint'}"]) == 0
  values = json.loads((folder / "template.json").read_text())
  entries = values["generator"]["tensors"]
  for entry in entries:
    if entry["to"] in changes:
      name = entry["to"]
      entry.clear()
      entry |= {"to": name} | changes[name]
    entry["from"] = entry.get("from", "").replace("blocks.", "layers.")
    if not entry["from"]:
      del entry["from"]
  values["generator"]["ignore"] = ["rope.*"]
  return values


def convert_with(made, capsys, values, out, *flags):
  folder = made[0]
  path = out.with_suffix(".json")
  path.write_text(values if isinstance(values, str) else json.dumps(values))
  flags = [f"--map={path}", f"--tokenizer={folder / 'vae.safetensors'}", *flags]
  flags = [f"--config={folder / 'config.py'}", f"--checkpoint={folder / 'checkpoint'}", *flags]
  return run(capsys, *flags, f"--out={out}")


def test_foreign_weights_become_a_model(made, table, tmp_path, capsys):
  _, generator, tokenizer, _ = made
  out = tmp_path / "model"
  status, said = convert_with(made, capsys, table, out)
  assert status == 0 and "missing" not in said, said
  for file, expected in (
    (model_folder.WEIGHTS, generator),
    ("tokenizer/tokenizer.safetensors", tokenizer),
  ):
    found = load_file(out / file)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
      np.testing.assert_array_equal(found[name], value, err_msg=name)
  values = json.loads((out / "config.json").read_text())
  assert values["stages"] == ["generator"] and values["frozen_tokenizer"] == "tokenizer"
  assert json.loads((out / "model.json").read_text())["source"] == "VideoAR, from checkpoint"
  model = videoar_jax.load_model(out, dtype="bfloat16")
  assert model.generator.head.kernel.dtype == "bfloat16" and model.num_frames == 5


def test_the_template_lists_the_checkpoint(made, tmp_path, capsys):
  folder = made[0]
  flags = [f"--config={folder / 'config.py'}", f"--checkpoint={folder / 'checkpoint'}"]
  status, said = run(capsys, *flags, f"--template={tmp_path / 'x.json'}")
  assert status == 0
  assert f"  layers.*.qkv.weight [{3 * WIDTH}, {WIDTH}], {LAYERS} of them\n" in said
  assert "  rope.steps [3]\n" in said
  entries = json.loads((tmp_path / "x.json").read_text())["generator"]["tensors"]
  assert {
    "to": "blocks.mlp.up.kernel",
    "from": "blocks.{layer}.mlp.up.weight",
    "shape": [16, WIDTH],
    "steps": [{"transpose": [1, 0]}],
  } in entries
  status, said = run(capsys, *flags, f"--template={tmp_path / 'x.json'}")
  assert status == 2 and "is there already" in said


def test_a_pth_with_both_parts_and_a_converted_tokenizer(made, table, tmp_path, capsys):
  torch = pytest.importorskip("torch", reason="a .pth file needs PyTorch")
  folder, generator, _, _ = made
  weights = load_file(folder / "checkpoint" / "a.safetensors")
  weights |= load_file(folder / "checkpoint" / "b.safetensors")
  tensors = {name: torch.from_numpy(x) for name, x in weights.items()}
  vae = {name: torch.from_numpy(x) for name, x in load_file(folder / "vae.safetensors").items()}
  path = tmp_path / "both.pth"
  torch.save({"step": 3, "ema": {"model": tensors}, "vae": vae}, path)
  both = copy.deepcopy(table)
  both["generator"]["part"], both["tokenizer"]["part"] = "ema.model", "vae"
  (tmp_path / "map.json").write_text(json.dumps(both))
  flags = [f"--config={folder / 'config.py'}", f"--checkpoint={path}"]
  flags += [f"--map={tmp_path / 'map.json'}", "--dtype=bfloat16"]
  status, said = run(capsys, *flags, f"--out={tmp_path / 'one'}")
  assert status == 0, said
  del both["tokenizer"]
  (tmp_path / "map.json").write_text(json.dumps(both))
  converted = f"--tokenizer={tmp_path / 'one' / 'tokenizer'}"
  status, said = run(capsys, *flags, converted, f"--out={tmp_path / 'other'}")
  assert status == 0, said
  one, other = (tmp_path / name for name in ("one", "other"))
  for file in (model_folder.WEIGHTS, "tokenizer/tokenizer.safetensors"):
    assert (one / file).read_bytes() == (other / file).read_bytes()
  found = load_file(one / model_folder.WEIGHTS)["start"]
  np.testing.assert_array_equal(found, generator["start"].astype(found.dtype))
  status, said = run(capsys, *flags, f"--out={tmp_path / 'third'}")
  assert status == 0 and "missing: tokenizer; name one by --tokenizer" in said


def edited(table, edit):
  """Returns a changed copy; the edit gets the entries of the generator by name."""
  values = copy.deepcopy(table)
  edit(values, {entry["to"]: entry for entry in values["generator"]["tensors"]})
  return values


def test_what_does_not_fit_is_listed_and_nothing_is_written(made, table, tmp_path, capsys):
  folder, out = made[0], tmp_path / "model"

  def refused(edit, *texts, flags=()):
    values = edit if isinstance(edit, str) else edited(table, edit)
    status, said = convert_with(made, capsys, values, out, *flags)
    assert status == 2 and said.startswith("error: ") and said.count("\n") == 1
    for text in texts:
      assert text in said, said
    assert not out.exists()

  def set_in(name, **changes):
    return lambda _, entries: entries[name].update(changes)

  refused("[", "is no JSON file")
  refused("[]", "must have a section generator, and maybe tokenizer")
  refused('{"generator": {}}', "generator.tensors is missing")
  refused(set_in("start", to="begin"), "no entry for start (16,)", "no parameter begin")
  refused(set_in("start", to="norm_out.scale"), "norm_out.scale has another entry before")
  refused(set_in("start", form=1), "form is unknown; known are from, shape, steps")
  refused(set_in("start", shape="16"), ".shape must be a list")
  refused(set_in("start", steps=[{"flip": 0}]), ".steps[0].flip is unknown; steps are")
  refused(set_in("start", steps=[{"take": {"axis": 0}}]), ".steps[0].take.start is missing")
  refused(set_in("start", **{"from": ["a"]}), "must be the name of a tensor; `join` takes several")
  refused(lambda values, _: values["generator"].update(ignore="x"), "generator.ignore must be a")
  # All that differs is listed together.
  refused(
    lambda values, entries: [
      entries["start"].update({"from": "begin"}),
      entries["blocks.mlp_norm.scale"].update(shape=[8]),
      entries["feature_in.kernel"].update(steps=[]),
      values["generator"].update(ignore=[]),
    ],
    "missing: begin;",
    "shape: layers.*.mlp_norm.weight (2 of them) is (16,), but (8,) in the table",
    "blocks.mlp_norm.scale: its entry makes (8,), but each layer of it is (16,)",
    "feature_in.kernel: its entry makes (16, 32), but it is (32, 16)",
    "unexpected: rope.steps; unexpected: start",
  )
  refused(
    set_in("start", steps=[{"take": {"axis": 1, "start": 0, "stop": 1}}]), "makes nothing (tuple"
  )
  # The keys are made of the queries' rows, and nothing of their own.
  refused(
    lambda _, entries: (
      entries["blocks.attention.key.kernel"]["steps"].pop(0)
      and entries["blocks.attention.key.kernel"]["steps"].insert(
        0, {"take": {"axis": 0, "start": 0, "stop": WIDTH}}
      )
    ),
    "only a part is used of layers.{layer}.qkv.weight",
  )
  refused(lambda _, __: None, "/nowhere is not a file", flags=["--tokenizer=/nowhere"])
  refused(lambda values, _: values.pop("tokenizer"), "has no section tokenizer for --tokenizer=")
  refused(lambda _, __: None, "config.generator.wide", flags=["--config.generator.wide=3"])
  flags = ["--config.generator.num_layers=3"]
  refused(lambda _, __: None, "missing: layers.2.attention.out.weight", flags=flags)
  status, said = run(
    capsys, f"--config={folder / 'config.py'}", f"--template={out}", f"--out={out}"
  )
  assert status == 2 and "--out goes with --map" in said
  status, said = run(capsys, f"--config={folder / 'config.py'}", f"--map={out}")
  assert status == 2 and "--checkpoint is missing; --map needs it" in said
  with pytest.raises(SystemExit):
    convert.main(["model", "--workdir=x", "--out=y", "--config.generator.num_layers=3"])
  assert "unrecognized arguments" in capsys.readouterr().err


def test_other_families_are_refused(tmp_path, capsys):
  (tmp_path / "config.py").write_text(
    "from tiny_nova import make_config\n\ndef get_config():\n  return make_config()\n"
  )
  status, said = run(
    capsys, f"--config={tmp_path / 'config.py'}", f"--template={tmp_path / 'x.json'}"
  )
  assert status == 2 and "trains no generator of the family videoar" in said


def test_weights_that_are_no_numbers_are_refused(made, table, tmp_path, capsys):
  folder, out = made[0], tmp_path / "model"
  weights = {}
  for name in "ab":
    weights |= load_file(folder / "checkpoint" / f"{name}.safetensors")
  weights["net.start"] = np.full_like(weights["net.start"], np.nan)
  save_file(weights, tmp_path / "bad.safetensors")
  flags = [f"--checkpoint={tmp_path / 'bad.safetensors'}"]
  status, said = convert_with(made, capsys, table, out, *flags)
  assert status == 2 and "start holds values that are not finite" in said and not out.exists()
