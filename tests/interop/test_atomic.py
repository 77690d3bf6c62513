"""Files and folders are complete or absent, whatever fails and whoever else writes them."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from videoar_jax.interop.atomic import remove_partials, replacing, write_text


def names(folder):
  return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def umask():
  """Sets a umask with which only the group may read."""
  before = os.umask(0o027)
  yield
  os.umask(before)


def test_a_file_takes_the_place_of_the_old_one_at_the_end(tmp_path):
  path = tmp_path / "a.json"
  for text in ("first", "second"):
    with replacing(path) as partial:
      partial.write_text(text)
      assert partial.parent == tmp_path and (text == "first") != path.exists()
      assert text == "first" or path.read_text() == "first"
    assert path.read_text() == text and names(tmp_path) == ["a.json"]


def test_the_path_may_be_a_string_and_the_text_empty(tmp_path):
  write_text(str(tmp_path / "a.txt"), "")
  assert (tmp_path / "a.txt").read_bytes() == b""


def test_a_folder_takes_the_place_of_none_or_an_empty_one(tmp_path):
  (tmp_path / "empty").mkdir()
  for name in ("new", "empty"):
    with replacing(tmp_path / name) as partial:
      partial.mkdir()
      (partial / "a").write_text(name)
    assert (tmp_path / name / "a").read_text() == name
  assert names(tmp_path) == ["empty", "new"]


@pytest.mark.parametrize("is_folder", [False, True])
@pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt()])
def test_what_fails_leaves_the_old_and_nothing_else(tmp_path, is_folder, error):
  (tmp_path / "a").write_text("old")
  with pytest.raises(type(error)) as raised, replacing(tmp_path / "a") as partial:
    if is_folder:
      partial.mkdir()
    (partial / "b" if is_folder else partial).write_text("half")
    raise error
  assert raised.value is error
  assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"


def test_what_fails_before_anything_is_written_is_what_is_told(tmp_path):
  with pytest.raises(ValueError, match="before"), replacing(tmp_path / "a"):
    raise ValueError("before")
  with pytest.raises(FileNotFoundError, match="missing"):
    write_text(tmp_path / "missing" / "a", "text")
  assert not names(tmp_path)


def test_a_folder_that_is_full_stays(tmp_path):
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "old").touch()
  with pytest.raises(OSError, match="not empty"), replacing(tmp_path / "a") as partial:
    partial.mkdir()
  assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["old"]


@pytest.mark.parametrize("is_folder", [False, True])
def test_permissions_are_the_usual_ones(tmp_path, umask, is_folder):
  with replacing(tmp_path / "a") as partial:
    partial.mkdir() if is_folder else partial.write_text("text")
  mode = stat.S_IMODE((tmp_path / "a").stat().st_mode)
  assert mode == (0o750 if is_folder else 0o640)


def test_blocks_of_one_path_do_not_share_what_they_write(tmp_path):
  """When several processes write the same file, the last one to finish wins."""
  with replacing(tmp_path / "a") as first:
    with replacing(tmp_path / "a") as second:
      first.write_text("first")
      second.write_text("second")
    assert (tmp_path / "a").read_text() == "second"
  assert (tmp_path / "a").read_text() == "first" and names(tmp_path) == ["a"]


def test_a_reader_sees_whole_files_alone(tmp_path):
  path, texts = tmp_path / "a", {letter * 10**5 for letter in "abcd"}
  write_text(path, "a" * 10**5)

  def write(text):
    for _ in range(50):
      write_text(path, text)

  with ThreadPoolExecutor(len(texts)) as pool:
    writers = [pool.submit(write, text) for text in texts]
    while not all(writer.done() for writer in writers):
      assert path.read_text() in texts
  assert [writer.result() for writer in writers] == [None] * len(texts)
  assert names(tmp_path) == ["a"]


def test_what_a_kill_left_is_removed(tmp_path):
  for name in ("a.txt", "b"):
    with replacing(tmp_path / name) as partial:
      partial.write_text("half")
      (tmp_path / f"copy of {partial.name}").mkdir()
      (tmp_path / f"copy of {partial.name}" / "c").touch()
      partial.with_name(f"other {partial.name}").touch()
  remove_partials(tmp_path)
  assert names(tmp_path) == ["a.txt", "b"]


def test_the_longest_names_of_clips_leave_room(tmp_path):
  write_text(tmp_path / ("x" * 200 + "_99999.mp4"), "text")


def test_partial_files_of_other_programs_stay(tmp_path):
  for name in ("film.partial", "a.json.partial", "a.json.0123abcd.partial"):
    (tmp_path / name).touch()
  remove_partials(tmp_path)
  assert names(tmp_path) == ["a.json.partial", "film.partial"]
