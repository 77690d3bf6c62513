"""Splits and classes from the lists of UCF-101's authors."""

import pytest
from media_files import write_image

from videoar_jax.data.pipeline import DataConfig, make_source
from videoar_jax.data.sources.folder import FolderSource


@pytest.fixture
def ucf(tmp_path):
  """Images instead of videos, which makes no difference to the lists."""
  for file in ("Run/a.png", "Run/b.png", "Jump/a b.png", "Jump/d.png", "Run/unlisted.png"):
    write_image(tmp_path / "videos" / file, 9)
  lists = {
    "classInd.txt": "1 Run\n2 Jump\n",
    "trainlist01.txt": "Run/b.png 1\nJump/a b.png 2\n\n",
    "testlist01.txt": "Jump/d.png\nRun/a.png\n",
  }
  for name, text in lists.items():
    (tmp_path / name).write_text(text)
  return tmp_path


def open_with(ucf, split_file):
  path = str(ucf / split_file)
  return FolderSource(
    ucf / "videos", "train", num_frames=1, frame_rate=8.0, resolution=(32, 64), split_file=path
  )


def test_official_lists_tell_splits_and_classes(ucf):
  config = DataConfig(
    source="folder",
    path=str(ucf / "videos"),
    split_file=str(ucf / "trainlist01.txt"),
    num_frames=1,
    resolution=(8, 8),
  )
  train, test = (make_source(config, split) for split in ("train", "test"))
  assert train.files == ["Run/b.png", "Jump/a b.png"] and train.has_test_split
  assert test.files == ["Jump/d.png", "Run/a.png"]
  assert train.class_names == ["Run", "Jump"]
  assert [train[i]["class_id"] for i in range(2)] == [0, 1]
  assert [test[i]["caption"] for i in range(2)] == ["Jump", "Run"]


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("trainlist01.txt", "Run/b.png 2\n", r"trainlist01\.txt, line 1: Run is number 1 .* here 2"),
    ("trainlist01.txt", "\nRun/x.png 1\n", r"trainlist01\.txt, line 2: there is no 'Run/x.png'"),
    ("trainlist01.txt", "Sit/b.png 1\n", r"line 1: there is no class 'Sit' in classInd\.txt"),
    ("trainlist01.txt", "Run/b.png 1\nRun/b.png 1", r"line 2: 'Run/b.png' is listed already"),
    ("trainlist01.txt", "Run/a.png 1\n", r"'Run/a.png' is in both"),
    ("testlist01.txt", "\n", r"testlist01\.txt names no file"),
    ("classInd.txt", "1 Run\n3 Jump\n", r"classInd\.txt, line 2: expected '2 ClassName'"),
  ],
)
def test_wrong_lists_name_the_line(ucf, name, text, message):
  (ucf / name).write_text(text)
  with pytest.raises(ValueError, match=message):
    open_with(ucf, "trainlist01.txt")


def test_missing_lists_are_named(ucf):
  with pytest.raises(ValueError, match=r"data\.split_file is .*set it to the list to train on"):
    open_with(ucf, "testlist01.txt")
  (ucf / "testlist01.txt").unlink()
  with pytest.raises(ValueError, match=r"testlist01\.txt is missing"):
    open_with(ucf, "trainlist01.txt")
  with pytest.raises(ValueError, match=r"data\.split_file applies to a folder"):
    DataConfig(split_file="trainlist01.txt")
