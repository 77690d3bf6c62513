"""Folders to write to: local ones and those at URLs behave alike."""

import fsspec
import pytest

from videoar_jax.data.output_folder import OutputFolder


@pytest.fixture(params=["local", "file://", "memory://"])
def place(request, tmp_path):
  files = fsspec.filesystem("memory")
  if request.param == "memory://":
    yield "memory://bucket/a/out/"
  else:
    yield tmp_path / "a" / "out" if request.param == "local" else (tmp_path / "a/out").as_uri()
  if files.exists("/bucket"):
    files.rm("/bucket", recursive=True)


def test_files_are_written_listed_read_and_removed(place):
  folder = OutputFolder(place)
  assert folder.sizes() == {} and not folder.has("x.json")
  folder.write("x.json", "ä\n")
  folder.write("y.json", "12345")
  with folder.writing("z") as path:
    path.write_bytes(b"0123456789")
    assert not folder.has("z")
  again = OutputFolder(place)
  assert again.sizes() == {"x.json": 3, "y.json": 5, "z": 10} and again.has("z")
  assert again.read(["y.json", "x.json"]) == ["12345", "ä\n"] and again.read([]) == []
  assert again.read_range("z", 2, 5) == b"234"
  again.remove("z")
  again.write("x.json", "new")
  assert folder.read(["x.json"]) == ["new"] and set(folder.sizes()) == {"x.json", "y.json"}


def test_what_fails_half_way_leaves_the_old_file(place):
  folder = OutputFolder(place)
  folder.write("x", "old")
  with pytest.raises(KeyError), folder.writing("x") as path:
    path.write_text("half")
    raise KeyError
  assert folder.read(["x"]) == ["old"] and set(folder.sizes()) == {"x"}


def test_left_partial_files_are_removed(tmp_path):
  (tmp_path / "x.0000000a.partial").touch()
  OutputFolder(tmp_path).remove_partials()
  assert not OutputFolder(tmp_path).sizes()
  OutputFolder("memory://bucket").remove_partials()


def test_a_place_that_cannot_be_used_is_named(monkeypatch):
  with pytest.raises(ValueError, match=r"nothing://x cannot be used .*Protocol not known"):
    OutputFolder("nothing://x/")
  folder = OutputFolder("memory://bucket")

  class NoCredentials(Exception):  # As of botocore and google.auth: no OSError.
    pass

  def refuse(*arguments, **options):
    raise NoCredentials("who are you?")

  monkeypatch.setattr(type(folder._files), "put_file", refuse)
  with pytest.raises(ValueError, match=r"memory://bucket cannot be used \(NoCred.*who are you"):
    folder.write("x", "text")
