"""Uploads of models: what arrives, the page about it, what is refused before anything is sent."""

import json
import shutil

import numpy as np
import pytest
import yaml
from hub_server import TOKEN, Hub
from PIL import Image

from videoar_jax import convert
from videoar_jax.experiment import model_folder, parse
from videoar_jax.experiment.defaults import default_config
from videoar_jax.experiment.model_card import model_card
from videoar_jax.interop import hub, tensors
from videoar_jax.interop.strict_json import write_json

pytest.importorskip("huggingface_hub")
SCORES = {
  "workdir": "/home/me/runs/1",
  "data": {"num_clips": 1024, "path": "/home/me/clips", "frame_rate": 8.0},
  "gfvd": 90.25,
  "prompts": {"all": {"colour": 0.5, "is_new": True}},
  "teacher_forced": None,
  "seconds": 3.5,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """A folder that looks like a model's; nothing here makes clips."""
  folder = tmp_path_factory.mktemp("published") / "model"
  tensors.write(folder.parent / "text_encoder.safetensors", {"": np.zeros((1, 4), np.float32)})
  (folder.parent / "tokenizer").mkdir()
  (folder.parent / "tokenizer" / "tokenizer.json").write_text('{"family": "kl"}')
  values = default_config({"generator": "generator"}, family="nova")
  values.generator.update(num_video_layers=2, d_model=16)
  values.data.num_frames, values.data.resolution, values.data.frame_rate = 5, (16, 24), 12.0
  weights = model_folder.Weights(
    {"a": ((3, 4), np.dtype("float32"))}, lambda _: np.zeros((3, 4), np.float32)
  )
  parts = {
    name: folder.parent / name for name in (model_folder.TOKENIZER, "text_encoder.safetensors")
  }
  model_folder.write(folder, values.to_dict(), "NOVA, from a test", weights, parts)
  return folder


@pytest.fixture
def server(tmp_path, monkeypatch):
  with Hub().running() as server:
    server.use(monkeypatch, tmp_path / "home")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server


def contents(folder):
  files = [x for x in folder.rglob("*") if x.is_file()]
  return {x.relative_to(folder).as_posix(): x.read_bytes() for x in files}


def push(folder, *flags, to="me/new"):
  return convert.main(["push", f"--model={folder}", f"--to={to}", *flags])


def test_a_model_arrives_as_it_is(model, server, tmp_path, monkeypatch, capsys):
  before = contents(model)
  write_json(tmp_path / "scores.json", SCORES)
  Image.new("RGB", (8, 8)).save(tmp_path / "sheet.png")
  flags = [f"--scores={tmp_path / 'scores.json'}", f"--sheet={tmp_path / 'sheet.png'}"]
  assert push(model, "--private", "--license=apache-2.0", *flags) == 0
  _, (commit, files) = server.commits["me/new"]
  del files[".gitattributes"]
  said = capsys.readouterr().out
  assert f"{server.address}/me/new: 7 files, commit {commit}; sample with --model=hf://me/" in said
  created = server.created[0]
  assert created.get("visibility") == "private" or created.get("private") is True
  assert contents(model) == before
  page, sheet = files.pop("README.md").decode(), files.pop("samples.png")
  assert files == before and sheet == (tmp_path / "sheet.png").read_bytes()
  _, head, body = page.split("---\n", 2)
  assert yaml.safe_load(head) == {
    "library_name": "videoar_jax",
    "pipeline_tag": "text-to-video",
    "license": "apache-2.0",
    "tags": ["jax", "nova"],
  }
  for line in (
    "Weights for videoar_jax, of the family nova: NOVA, from a test.",
    "| parameters of the generator | 12 |",
    "| d_model | 16 |",
    "| num_video_layers | 2 |",
    "| clips | 5 frames of 16x24 pixels, 12 a second |",
    "python -m videoar_jax.sample --model=hf://me/new "
    '--prompt="a fox runs through snow" --text_features=FOLDER --out=samples',
    'model = videoar_jax.load_model("hf://me/new", text_features="FOLDER")',
    "| gfvd | 90.25 |",
    "| test clips | 1,024 |",
    "| prompts, all, colour | 0.5 |",
    "![samples](samples.png)",
  ):
    assert f"\n{line}\n" in body
  for other in ("/home/me", str(model), "is_new", "| seconds |", "frame_rate"):
    assert other not in body
  server.forget(monkeypatch)
  assert model_folder.check_hashes(hub._download(hub._parse("hf://me/new"), False)) == 4


def test_a_second_upload_is_a_second_commit(model, server):
  assert push(model) == 0
  assert push(model) == 0
  _, (_, first), (_, second) = server.commits["me/new"]
  assert first == second and "license" not in first["README.md"].decode().split("---")[1]
  assert server.messages == ["Upload a model of the family nova"] * 2
  assert "samples.png" not in first and "Scores" not in first["README.md"].decode()


def test_files_of_an_earlier_model_are_deleted(model, server, tmp_path, capsys):
  Image.new("RGB", (8, 8)).save(tmp_path / "sheet.png")
  assert push(model, f"--sheet={tmp_path / 'sheet.png'}") == 0
  files = server.files("me/new")
  facts = json.loads(files["model.json"])
  # As if the old model had another text encoder, and its owner had added a file.
  old = {"text_encoder/config.json": b"{}", "text_encoder/model.safetensors": b"x"}
  facts["files"] |= {name: {"bytes": len(x), "sha256": ""} for name, x in old.items()}
  own = {"text_encoder/notes.txt": b"mine", "licence.txt": b"mine"}
  server.put("me/new", files | old | own | {"model.json": json.dumps(facts).encode()})
  capsys.readouterr()
  assert push(model) == 0
  assert " 6 files, 3 of an earlier model deleted, commit " in capsys.readouterr().out
  found = server.files("me/new")
  assert set(found) == {".gitattributes", "README.md", *contents(model), *own}
  # What lists no files of ours says nothing of what to delete.
  server.put("me/new", found | {"model.json": b"[]", "more.safetensors": b""})
  assert push(model) == 0
  assert set(server.files("me/new")) == {*found, "more.safetensors"}


def test_what_must_be_private_is_not_sent_to_a_public_repository(model, server, capsys):
  server.put("me/new", {})
  assert push(model, "--private") == 2
  said = capsys.readouterr().err
  assert "--to=me/new is there already, and public; make it private on its page" in said
  assert not server.files("me/new")
  assert push(model) == 0
  assert push(model, "--private", to="me/other") == 0
  assert push(model, "--private", to="me/other") == 0
  assert len(server.commits["me/other"]) == 3


def test_images_are_images(model, tmp_path):
  folder = shutil.copytree(model, tmp_path / "images")
  values = parse.load_config(folder / "config.json")
  values["data"]["num_frames"] = 1
  values["text"] |= {"tokenizer": "classes", "classes": ("cat", "dog"), "length": 1}
  parse.save_config(values, folder / "config.json")
  facts = json.loads((folder / "model.json").read_text())
  facts["files"]["config.json"]["bytes"] = (folder / "config.json").stat().st_size
  write_json(folder / "model.json", facts)
  page = model_card(folder, "me/new")
  assert "pipeline_tag: text-to-image\n" in page and "| images | 16x24 pixels |" in page
  assert "--class_id=0" in page and 'model.sample(["cat"], seed=0)' in page


def test_nothing_is_sent_if_anything_is_wrong(model, server, tmp_path, monkeypatch, capsys):
  def said(text, folder, *flags, to="me/new"):
    assert push(folder, *flags, to=to) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1
    assert not server.commits and not server.created

  damaged = shutil.copytree(model, tmp_path / "damaged")
  content = (damaged / model_folder.WEIGHTS).read_bytes()
  (damaged / model_folder.WEIGHTS).write_bytes(content[:-1] + b"x")
  said("generator.safetensors has changed since the folder was made", damaged)
  (damaged / model_folder.WEIGHTS).write_bytes(content[:-1])
  said("generator.safetensors has ", damaged)
  said("is no model's folder, which has a file model.json", tmp_path)
  for name in ("new", "me/a/b", "hf://me/new", "me/a b"):
    said(f"--to={name} must be OWNER/NAME", model, to=name)
  said("--license=Apache 2.0 must be a name that the hub uses", model, "--license=Apache 2.0")
  (tmp_path / "x.json").write_text("[1]")
  said("holds no scores by name", model, f"--scores={tmp_path / 'x.json'}")
  (tmp_path / "x.json").write_text("[")
  said("is no JSON file", model, f"--scores={tmp_path / 'x.json'}")
  said("is no PNG picture", model, f"--sheet={tmp_path / 'x.json'}")
  said("y.png", model, f"--sheet={tmp_path / 'y.png'}")
  monkeypatch.setenv("HF_TOKEN", "wrong")
  said("--to=me/new: the hub refuses; check the name, and set HF_TOKEN to a token", model)
  monkeypatch.delenv("HF_TOKEN")
  said("--to=me/new: the hub refuses; check the name, and set HF_TOKEN to a token", model)
  server.address = "http://127.0.0.1:9"
  server.use(monkeypatch, tmp_path / "home")
  said("--to=me/new: it cannot be written (Connect", model)
