"""Published protocols of FVD on UCF-101: which real clips are compared with which generated ones.

Values of FVD compare only if all of this is equal: the number of clips, their frames and stride,
the videos that they are cut out of, how they are resized, and the network's features.

- `ucf101-2048x4`: 2048 clips of 16 frames, every third one, four seeds. Latte (arXiv 2401.03048)
  and FAR (arXiv 2503.19325) report it; FAR's public code defines it.
- `ucf101-10k`: 10,000 clips of consecutive frames of the training list. MAGVIT (arXiv 2212.05199)
  and LARP (arXiv 2410.21264) report it, with 16 frames; LARP's public code defines it. Tokenizers
  that code the first frame alone make 17 frames, which is what is compared here.

The inception score on UCF-101, which is reported beside, is left out: it needs a C3D network whose
weights no package has.
"""

import collections
import dataclasses
import math
import pathlib
import posixpath
import random
from collections.abc import Callable

from videoar_jax.data.media.numbered import count_frames
from videoar_jax.data.sources.media_files import find_media
from videoar_jax.data.sources.splits import read_official_split

NO_INCEPTION_SCORE = (
  "the inception score on UCF-101 needs its C3D network, whose weights no package has"
)
_RESIZE = (
  "shorter side to the resolution, bilinear with antialiasing, centre crop, 8 bits; then each "
  "frame to 224x224, bilinear without antialiasing, half-pixel centres"
)


@dataclasses.dataclass(frozen=True)
class Protocol:
  """A published protocol.

  Attributes:
    name: as on the command line.
    num_clips: of each side.
    num_frames: of a clip.
    stride: from one frame to the next, in frames of the file.
    frame_rate: of the files, in frames per second.
    seeds: of the draws of real clips and of sampling; the score is the mean over them.
    lists: of videos from which real clips are taken.
    real_clips: how real clips are chosen.
    prompts: of the generated clips.
    resize: of frames.
    features: of I3D (RGB, Kinetics-400) that the score compares.
    is_biased: whether covariances have the divisor n instead of n - 1.
    sources: of these definitions.
    differences: known ones from the sources.
  """

  name: str
  num_clips: int
  num_frames: int
  stride: int
  seeds: tuple[int, ...]
  lists: tuple[str, ...]
  real_clips: str
  is_biased: bool
  sources: tuple[str, ...]
  differences: tuple[str, ...]
  frame_rate: float = 25.0
  prompts: str = "the class of each real clip"
  resize: str = _RESIZE
  features: str = "logits"


@dataclasses.dataclass(frozen=True)
class RealClip:
  """A clip to read: `num_frames` frames of a file, by number.

  Attributes:
    file: relative to the folder.
    start: number of the first frame.
    stride: from one frame to the next.
    class_name: its folder.
  """

  file: str
  start: int
  stride: int
  class_name: str


UCF101_2048X4 = Protocol(
  name="ucf101-2048x4",
  num_clips=2048,
  num_frames=16,
  stride=3,
  seeds=(0, 2, 4, 6),
  lists=("train", "test"),
  real_clips=(
    "equally many videos of each class, drawn without replacement, shuffled, and cut to the number "
    "of clips; of each video frames 0, 3, 6, ..., or the first consecutive ones if it is too short"
  ),
  is_biased=False,
  sources=(
    "https://github.com/showlab/FAR commit e59536ac30e5: far/data/ucf_dataset.py, "
    "far/metrics/fvd.py, options/test/far/video_generation/FAR_L_ucf101_cond_res128_400K_bs32.yml, "
    "README.md (seeds 0, 2, 4, 6)",
    "https://github.com/universome/stylegan-v commit 3fecd69c602e: src/metrics/metric_main.py "
    "(fvd2048_16f; deviations have the divisor n)",
  ),
  differences=(
    "FAR's list of videos, trainval.json, is not public; by its name both lists are taken",
    "draws are by Python's random.Random(seed), not by the state of FAR's program",
  ),
)
UCF101_10K = Protocol(
  name="ucf101-10k",
  num_clips=10_000,
  num_frames=17,
  stride=1,
  seeds=(42,),
  lists=("train",),
  real_clips=(
    "all windows of consecutive frames, one after the other, of the sorted videos; drawn from them "
    "without replacement by random.Random(42).sample"
  ),
  is_biased=True,
  sources=(
    "https://github.com/hywang66/LARP commit 8aaed63354c8: sample.py, datasets/video_dataset.py, "
    "utils/fvd/fvd.py",
    "https://github.com/google-research/magvit commit 05e8cfd6559c: "
    "videogvt/configs/maskgvt_ucf101_config.py (10,000 clips, training split)",
  ),
  differences=(
    "17 frames, where LARP and MAGVIT have 16",
    "one run, as LARP; MAGVIT repeats it four times",
    "clips have 8 bits; LARP compares unrounded pixels",
  ),
)
PROTOCOLS = {protocol.name: protocol for protocol in (UCF101_2048X4, UCF101_10K)}


def read_lists(folder: str | pathlib.Path, split_file: str | None, protocol: Protocol) -> list[str]:
  """Returns the videos of a protocol's lists, sorted, as paths below a folder.

  Args:
    folder: the videos, one folder per class.
    split_file: UCF-101's `trainlist01.txt`, with the other lists beside it.
    protocol: the protocol.
  Raises:
    ValueError: there is no list, or it does not fit the folder; names the file and line.
  """
  if split_file is None:
    raise ValueError(
      f"--protocol={protocol.name} needs UCF-101's lists, and --data={folder} has none: add "
      "--split_file=LISTS/trainlist01.txt, with testlist01.txt and classInd.txt beside it"
    )
  parts = read_official_split(split_file, find_media(pathlib.Path(folder).expanduser()))
  return sorted(file for name in protocol.lists for file in parts.files[name])


def choose(
  protocol: Protocol, folder: str | pathlib.Path, files: list[str], num_clips: int, seed: int
) -> list[RealClip]:
  """Chooses a protocol's real clips.

  Args:
    protocol: the protocol.
    folder: of the files.
    files: the videos of its lists, sorted.
    num_clips: how many; fewer than the protocol's in tests.
    seed: of the draw.
  Raises:
    ValueError: there are fewer, and how many; or a file cannot be read.
  """
  root = pathlib.Path(folder).expanduser()
  chosen = _by_class if protocol.stride > 1 else _windows
  return chosen(protocol, files, num_clips, random.Random(seed), lambda x: _count(root / x))


def _count(path: pathlib.Path) -> int:
  try:
    return count_frames(path)
  except ValueError as error:
    raise ValueError(f"{path}: {error}; replace it, or remove it from the lists") from error


def _by_class(
  protocol: Protocol,
  files: list[str],
  num_clips: int,
  draw: random.Random,
  count: Callable[[str], int],
) -> list[RealClip]:
  """Chooses one clip a video, of equally many videos of each class."""
  classes = collections.defaultdict(list)
  for file in files:
    classes[_class_of(file)].append(file)
  share = math.ceil(num_clips / len(classes))
  for name, members in classes.items():
    if len(members) < share:
      raise ValueError(
        f"{protocol.name} wants {num_clips} clips, {share} videos of each of {len(classes)} "
        f"classes, but {name} has {len(members)}; complete the data, or lower --num_clips to "
        f"{len(classes) * min(map(len, classes.values()))}"
      )
  videos = [file for members in classes.values() for file in draw.sample(members, share)]
  draw.shuffle(videos)
  clips = []
  for file in videos[:num_clips]:
    num_frames = count(file)
    if num_frames < protocol.num_frames:
      raise ValueError(
        f"{file} has {num_frames} frames, but {protocol.name} needs {protocol.num_frames}; replace "
        "it, or remove it from the lists"
      )
    is_long = num_frames > (protocol.num_frames - 1) * protocol.stride
    clips.append(RealClip(file, 0, protocol.stride if is_long else 1, _class_of(file)))
  return clips


def _windows(
  protocol: Protocol,
  files: list[str],
  num_clips: int,
  draw: random.Random,
  count: Callable[[str], int],
) -> list[RealClip]:
  """Chooses among all windows of consecutive frames, one after the other in each video."""
  size = protocol.num_frames
  windows = [(file, i * size) for file in files for i in range(count(file) // size)]
  if len(windows) < num_clips:
    raise ValueError(
      f"{protocol.name} wants {num_clips} clips, but the {len(files)} videos have "
      f"{len(windows)} windows of {size} frames; complete the data, or lower --num_clips"
    )
  chosen = draw.sample(range(len(windows)), num_clips)
  return [RealClip(*windows[i], 1, _class_of(windows[i][0])) for i in chosen]


def _class_of(file: str) -> str:
  return posixpath.basename(posixpath.dirname(file))
