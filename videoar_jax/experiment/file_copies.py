"""Copies of files that a config names, in the workdir, which can then be moved.

  WORKDIR/files/frozen_tokenizer/           of the folder of that name
  WORKDIR/files/tokenizer.json              of `text.tokenizer`
  WORKDIR/files/text_features.safetensors   of features in `text.tokenizer`, or of those that the
                                            encoder there computes, those of "" alone
  WORKDIR/files/guidance.json               of `sampling.guidance`

Features of "" tell the width of all, and are needed for guidance; those of other prompts are as
large as data, and are given to `sample` and `evaluate` by a flag, as is a text encoder, whose
weights may be larger still.
"""

import filecmp
import logging
import pathlib
import shutil

import numpy as np

from videoar_jax.experiment.paths import is_path
from videoar_jax.interop import hub, tensors
from videoar_jax.interop.atomic import replacing
from videoar_jax.text.encoders.files import encoder_files
from videoar_jax.text.features import TextFeatures
from videoar_jax.text.pretrained import PretrainedText
from videoar_jax.tokenizers.files import CONFIG_FILE, WEIGHTS_FILE

log = logging.getLogger(__name__)

FOLDER, TOKENIZER_FOLDER = "files", "frozen_tokenizer"
_TOKENIZER_FILES = (CONFIG_FILE, WEIGHTS_FILE)
# Features of a prompt, in which no two encoders agree.
_PROBE, _PROMPT = "text_probe.safetensors", "a red ball rolls down the stairs"
_ROUNDING = 0.03  # Largest error of an encoder in bfloat16, over the largest feature.
_TOKENIZER, _FEATURES, _GUIDANCE = "tokenizer.json", "text_features.safetensors", "guidance.json"


def _fields(values: dict, workdir: pathlib.Path):
  """Yields (section, field, its value, place of the copy) for each file that a config names."""
  for section, field, name in (
    ("text", "tokenizer", _TOKENIZER),
    ("sampling", "guidance", _GUIDANCE),
  ):
    value = values[section].get(field)
    is_on_hub = field == "tokenizer" and value is not None and hub.is_hub(value)
    if is_on_hub or is_path(f"{section}.{field}", value):
      name = name if hub.without_revision(value).endswith(".json") else _FEATURES
      yield section, field, value, workdir / FOLDER / name


def _is_there(path: str) -> bool:
  """Returns whether a path exists, here or on the hub, for use instead of its copy."""
  try:
    return pathlib.Path(hub.local(path)).expanduser().exists()
  except ValueError as error:
    log.warning("%s; the copy in the workdir is used instead", error)
    return False


def _with_tokenizer(values: dict, workdir: pathlib.Path, *, is_preferred: bool) -> dict:
  """Returns a config that names its frozen tokenizer here: the copy, if there is one to take."""
  path, copy = values["frozen_tokenizer"], workdir / FOLDER / TOKENIZER_FOLDER
  if path is None:
    return values
  if not copy.is_dir() or (is_preferred and _is_there(path)):
    return values | {"frozen_tokenizer": hub.local(path, "frozen_tokenizer")}
  return values | {"frozen_tokenizer": str(copy)}


def _keep_tokenizer(values: dict, workdir: pathlib.Path, *, is_new: bool) -> None:
  """Copies the frozen tokenizer into the workdir; once anything is trained, it stays as it is."""
  path, copy = values["frozen_tokenizer"], workdir / FOLDER / TOKENIZER_FOLDER
  if path is None or pathlib.Path(path).expanduser() == copy:
    return
  if is_new and copy.exists():
    shutil.rmtree(copy)
  if not copy.exists():
    copy.parent.mkdir(exist_ok=True)
    with replacing(copy) as partial:
      partial.mkdir()
      for name in _TOKENIZER_FILES:
        shutil.copyfile(pathlib.Path(path).expanduser() / name, partial / name)


def check_same_tokenizer(values: dict, workdir: pathlib.Path) -> None:
  """Checks that a frozen tokenizer is the one that the workdir was made with.

  Raises:
    ValueError: it is not.
  """
  copy = workdir / FOLDER / TOKENIZER_FOLDER
  path = values["frozen_tokenizer"]
  if path is None or not copy.is_dir() or pathlib.Path(path) == copy:
    return
  _, different, missing = filecmp.cmpfiles(path, copy, _TOKENIZER_FILES, shallow=False)
  if different or missing:
    name = hub.origin(path)
    fix = "restore it" if name is None else "name the @REVISION that run.json has"
    raise ValueError(
      f"frozen_tokenizer={name or path} differs from {copy}, with which this workdir was made, in "
      f"{', '.join(different + missing)}; {fix}, or name another workdir"
    )


def with_copies(values: dict, workdir: pathlib.Path, *, is_training: bool) -> dict:
  """Returns a config that names the copies instead of files that are missing.

  What is on the hub is downloaded, unless its copy is used.

  Args:
    values: the config, complete.
    workdir: of the run.
    is_training: whether files that exist are preferred to their copies. A trained model is used
      with the files that it was trained with, even if these changed since.
  Raises:
    ValueError: what has no copy cannot be downloaded; names the field.
  """
  values = _with_tokenizer(values, workdir, is_preferred=is_training)
  for section, field, path, copy in _fields(values, workdir):
    is_preferred = is_training or copy.name == _FEATURES
    if copy.is_file() and not (is_preferred and _is_there(path)):
      path = str(copy)
    else:
      path = hub.local(path, f"{section}.{field}")
    values = values | {section: values[section] | {field: path}}
  return values


def keep(values: dict, encoder, workdir: pathlib.Path, *, is_new: bool) -> None:
  """Copies the files that a config names into the workdir; removes copies of others.

  Args:
    values: the config, complete, after `with_copies`.
    encoder: its text encoder.
    workdir: of the run.
    is_new: whether nothing was trained in it yet.
  """
  _keep_tokenizer(values, workdir, is_new=is_new)
  fields = list(_fields(values, workdir))
  for name in (_TOKENIZER, _FEATURES, _GUIDANCE):
    if all(copy.name != name for *_, copy in fields):
      (workdir / FOLDER / name).unlink(missing_ok=True)
  for _, _, value, copy in fields:
    path = pathlib.Path(value).expanduser()
    copy.parent.mkdir(exist_ok=True)
    if copy.name == _FEATURES:
      tensors.write(copy, {"": encoder.null()})
      if isinstance(encoder, PretrainedText):
        tensors.write(copy.with_name(_PROBE), {_PROMPT: encoder.features(_PROMPT)})
    elif path.exists():
      with replacing(copy) as partial:
        partial.write_bytes(path.read_bytes())


def text_parts(text, name: str, folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns the files that a model needs for its prompts, by their places in its folder.

  Args:
    text: with `tokenizer` and `encoder`.
    name: of the text encoder in the folder, without a suffix.
    folder: for features of the empty prompt, which stand for a file of features.
  """
  path = pathlib.Path(text.tokenizer).expanduser()
  if isinstance(text.encoder, TextFeatures):
    copy = folder / _FEATURES
    tensors.write(copy, {"": text.encoder.null()})
    return {f"{name}{copy.suffix}": copy}
  if isinstance(text.encoder, PretrainedText):
    return {f"{name}/{file.name}": file for file in encoder_files(path)}
  return {f"{name}{path.suffix}": path}


def has_text(workdir: pathlib.Path) -> bool:
  """Returns whether the workdir has a copy of what `text.tokenizer` names."""
  return any((workdir / FOLDER / name).is_file() for name in (_TOKENIZER, _FEATURES))


def check_same_text(values: dict, encoder, workdir: pathlib.Path) -> None:
  """Checks that prompts are encoded as they were, wherever the files are now.

  Raises:
    ValueError: they are not.
  """
  if not has_text(workdir):
    return
  path = values["text"]["tokenizer"]
  for name in (_TOKENIZER, _FEATURES):
    copy = workdir / FOLDER / name
    if not copy.is_file():
      continue
    if name == _TOKENIZER:
      file = pathlib.Path(path).expanduser()
      is_same = file.is_file() and file.read_bytes() == copy.read_bytes()
    else:
      is_same = _is_same_null(encoder, tensors.read(copy)[""])
      probe = copy.with_name(_PROBE)
      if is_same and isinstance(encoder, PretrainedText) and probe.is_file():
        # Some encoders make nothing of no words.
        is_same = _is_near(encoder.features(_PROMPT), tensors.read(probe)[_PROMPT])
    if not is_same:
      raise ValueError(
        f"text.tokenizer={path!r} encodes prompts differently from {copy}, with which this workdir "
        "was made; restore the file, or name another workdir"
      )


def _is_same_null(encoder, features: np.ndarray) -> bool:
  """Returns whether an encoder gives the features of "" that a workdir has."""
  if isinstance(encoder, TextFeatures):
    return np.array_equal(features, encoder.null())
  return isinstance(encoder, PretrainedText) and _is_near(encoder.null(), features)


def _is_near(features: np.ndarray, kept: np.ndarray) -> bool:
  """Returns whether features are the kept ones, but for the rounding of another kind of device."""
  if features.shape != kept.shape:
    return False
  features, kept = (np.asarray(x, np.float32) for x in (features, kept))
  return bool(np.abs(features - kept).max() <= _ROUNDING * np.abs(kept).max())
