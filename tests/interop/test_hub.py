"""Downloads from the hub: what is fetched, which commit, and what is said when it fails."""

import logging
import pathlib
import sys

import pytest
from hub_server import TOKEN, Hub

from videoar_jax import convert
from videoar_jax.interop import hub

pytest.importorskip("huggingface_hub")
FILES = {
  "model.json": b"{}",
  "text_encoder/config.json": b"encoder",
  "text_encoder/pytorch_model.bin": b"pickle",
  "text_encoder/tf_model.h5": b"of another library",
  "tokenizer/tokenizer.json": b"tokenizer",
  "tokenizer/tokenizer.safetensors": bytes(range(256)) * 40,
}


@pytest.fixture
def server(tmp_path, monkeypatch):
  with Hub().running() as server:
    server.use(monkeypatch, tmp_path / "home")
    yield server


def files_in(folder):
  return sorted(x.relative_to(folder).as_posix() for x in folder.rglob("*") if x.is_file())


def test_other_paths_stay_as_they_are(tmp_path):
  for path in ("runs/quickstart", "gs://bucket/folder", tmp_path):
    assert hub.local(path) is path
    assert not hub.is_hub(path)
    assert hub.origin(path) is None
  assert hub.without_revision("a@b/c.json") == "a@b/c.json"
  assert hub.without_revision("hf://a/b/c.json@main") == "hf://a/b/c.json"


def test_a_repository_is_downloaded_without_what_is_never_read(server):
  commit = server.put("me/model", FILES)
  found = hub.local(pathlib.Path("hf://me/model"))
  wanted = sorted(name for name in FILES if not name.endswith((".h5", ".bin")))
  assert files_in(found) == wanted == sorted(server.downloaded)
  assert all((found / name).read_bytes() == FILES[name] for name in wanted)
  assert hub.local("hf://me/model") == str(found)
  assert hub.origin(found) == f"hf://me/model@{commit}"
  assert hub.origin(found / "tokenizer") == f"hf://me/model/tokenizer@{commit}"
  assert hub.commits() == {"hf://me/model": commit}
  pickles = hub.local("hf://me/model/text_encoder", has_pickles=True)
  assert "pytorch_model.bin" in files_in(pathlib.Path(pickles))


def test_a_folder_or_a_file_is_downloaded_alone(server):
  server.put("me/model", FILES | {"tokenizer2/x.json": b"", "a[b]/c.json": b"1"})
  folder = pathlib.Path(hub.local("hf://me/model/tokenizer/"))
  assert folder.name == "tokenizer" and files_in(folder.parent) == sorted(server.downloaded)
  assert sorted(server.downloaded) == [
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer.safetensors",
  ]
  # The tokenizer of a pipeline's text encoder is beside it.
  hub.local("hf://me/model/text_encoder")
  assert server.downloaded[2:] == ["text_encoder/config.json"]
  assert pathlib.Path(hub.local("hf://me/model/model.json")).read_bytes() == b"{}"
  assert pathlib.Path(hub.local("hf://me/model/a[b]")).is_dir()


def test_a_process_stays_with_one_commit(server, monkeypatch, caplog):
  old = server.put("me/model", FILES)
  with caplog.at_level(logging.INFO, logger="videoar_jax"):
    hub.local("hf://me/model/model.json")
  assert f"hf://me/model/model.json is of commit {old}" in caplog.text
  new = server.put("me/model", FILES | {"model.json": b"new"})
  assert old in hub.local("hf://me/model/tokenizer")
  named = hub.local(f"hf://me/model/model.json@{new}")
  assert pathlib.Path(named).read_bytes() == b"new"
  server.forget(monkeypatch)
  assert new in hub.local("hf://me/model/model.json")
  assert old in hub.local(f"hf://me/model/model.json@{old}")


def test_a_broken_download_leaves_no_file(server, tmp_path, monkeypatch, capsys):
  server.put("me/model", {"model.json": b"x" * 100_000})
  server.is_breaking = True
  monkeypatch.setattr("time.sleep", lambda _: None)  # Between attempts.
  with pytest.raises(ValueError, match=r"^hf://me/model: it cannot be downloaded \(.*try again"):
    hub.local("hf://me/model")
  assert len(server.downloaded) == 1  # It began.
  assert not [x for x in (tmp_path / "home").rglob("*") if x.is_file() and x.stat().st_size > 5000]
  assert convert.main(["infinity", "--checkpoint=hf://me/model", f"--out={tmp_path / 'out'}"]) == 2
  assert "--checkpoint=hf://me/model: it cannot be downloaded" in capsys.readouterr().err
  assert not (tmp_path / "out").exists()
  server.is_breaking = False
  assert (pathlib.Path(hub.local("hf://me/model")) / "model.json").stat().st_size == 100_000


def test_without_network_the_cache_is_used(server, monkeypatch, tmp_path):
  server.put("me/model", FILES)
  found = hub.local("hf://me/model/tokenizer")
  server.address = "http://127.0.0.1:9"
  monkeypatch.setattr("time.sleep", lambda _: None)  # Between attempts.
  server.use(monkeypatch, tmp_path / "home")
  assert hub.local("hf://me/model/tokenizer") == found
  for name in ("hf://me/other", "hf://me/model/text_encoder"):
    with pytest.raises(ValueError, match=f"{name}: the hub cannot be reached, and the cache"):
      hub.local(name)


def test_what_cannot_be_read_is_named(server, monkeypatch):
  server.put("me/model", FILES)
  server.put("me/gated", FILES)
  server.put("me/private", FILES)
  server.closed = {"me/gated": "gated", "me/private": "private"}

  def said(name, text):
    with pytest.raises(ValueError) as error:
      hub.local(name, "--model")
    assert str(error.value).startswith(f"--model={name}: ") and text in str(error.value)

  said("hf://me/nothing", "no such repository, or it is private; check the name, or set HF_TOKEN")
  said("hf://me/private", "no such repository, or it is private; check the name, or set HF_TOKEN")
  said("hf://me/gated", "access is granted on its page; ask for it there, and set HF_TOKEN")
  said("hf://me/model@nowhere", "there is no such revision; names have the form hf://OWNER/NAME")
  said("hf://me/model/vae", "the repository has no vae that can be read here, at ")
  for wrong in ("hf://me", "hf://me/model/../x", "hf://me/a b", "hf://me/m//x"):
    said(wrong, "names of the hub have the form hf://OWNER/NAME[/PATH][@REVISION]")
  monkeypatch.setenv("HF_TOKEN", TOKEN)
  assert hub.local("hf://me/private").endswith(server.commits["me/private"][0][0])
  assert hub.local("hf://me/gated").endswith(server.commits["me/gated"][0][0])


def test_the_missing_package_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(ValueError, match=r"pip install 'videoar_jax\[hub\]'"):
    hub.local("hf://me/unknown")
