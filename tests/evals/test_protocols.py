"""Which real clips the published protocols choose, on a stand-in for UCF-101."""

import collections
import dataclasses
import random

import pytest
from ucf_layout import CLASSES, SHORT, write_ucf

from videoar_jax.evals import protocols
from videoar_jax.evals.protocols import UCF101_10K, UCF101_2048X4


@pytest.fixture(scope="module")
def ucf(tmp_path_factory):
  return write_ucf(tmp_path_factory.mktemp("ucf"))


def choose(protocol, ucf, num_clips, seed=0):
  files = protocols.read_lists(ucf[0], str(ucf[1]), protocol)
  return protocols.choose(protocol, ucf[0], files, num_clips, seed)


def test_lists_are_those_of_the_protocol(ucf):
  train = protocols.read_lists(ucf[0], str(ucf[1]), UCF101_10K)
  both = protocols.read_lists(ucf[0], str(ucf[1]), UCF101_2048X4)
  assert len(train) == 9 and len(both) == 12 and set(train) < set(both)
  assert train == sorted(train) and not [file for file in both if "unlisted" in file]
  with pytest.raises(ValueError, match=r"ucf101-10k needs UCF-101's lists, .* --split_file=LISTS"):
    protocols.read_lists(ucf[0], None, UCF101_10K)
  with pytest.raises(ValueError, match=r"no\.txt"):
    protocols.read_lists(ucf[0], str(ucf[1].with_name("train_no.txt")), UCF101_10K)


def test_one_clip_a_video_of_equally_many_of_each_class(ucf):
  clips = choose(UCF101_2048X4, ucf, 12)
  assert len({clip.file for clip in clips}) == 12
  for clip in clips:
    assert (clip.start, clip.stride) == (0, 1 if clip.file == SHORT else 3)
    assert clip.file.startswith(f"{clip.class_name}/")
  # Two of each class, one of which is cut off: 5 clips are no multiple of 3 classes.
  clips = choose(UCF101_2048X4, ucf, 5)
  assert len(clips) == 5 and len({clip.file for clip in clips}) == 5
  assert sorted(collections.Counter(clip.class_name for clip in clips).values()) == [1, 2, 2]
  assert choose(UCF101_2048X4, ucf, 5) == clips
  assert choose(UCF101_2048X4, ucf, 5, seed=2) != clips


def test_windows_follow_each_other_and_are_drawn_as_the_source_says(ucf):
  """The indices are those of `random.Random(seed).sample`, of the sorted videos' windows."""
  files = protocols.read_lists(ucf[0], str(ucf[1]), UCF101_10K)
  windows = [(file, 17 * i) for file in files for i in range(2 if file == SHORT else 3)]
  clips = choose(UCF101_10K, ucf, 26, seed=42)
  wanted = [windows[i] for i in random.Random(42).sample(range(26), 26)]
  assert [(clip.file, clip.start) for clip in clips] == wanted
  assert {clip.stride for clip in clips} == {1}
  assert {clip.class_name for clip in clips} == set(CLASSES)


def test_too_few_clips_say_how_many_there_are(ucf):
  wanted = r"wants 10000 clips, but the 9 videos have 26 windows of 17 frames"
  with pytest.raises(ValueError, match=wanted):
    choose(UCF101_10K, ucf, UCF101_10K.num_clips)
  wanted = r"683 videos of each of 3 classes, but Archery has 4; .* lower --num_clips to 12"
  with pytest.raises(ValueError, match=wanted):
    choose(UCF101_2048X4, ucf, UCF101_2048X4.num_clips)
  longer = dataclasses.replace(UCF101_2048X4, num_frames=41)
  with pytest.raises(ValueError, match=r"c03\.avi has 40 frames, but .* needs 41"):
    choose(longer, ucf, 12)


def test_definitions_are_those_that_were_published():
  one, other = UCF101_2048X4, UCF101_10K
  assert (one.num_clips, one.num_frames, one.stride, one.seeds) == (2048, 16, 3, (0, 2, 4, 6))
  assert (other.num_clips, other.num_frames, other.stride) == (10_000, 17, 1)
  for protocol in (one, other):
    assert all(source.startswith("https://github.com/") for source in protocol.sources)
    assert all(" commit " in source for source in protocol.sources)
