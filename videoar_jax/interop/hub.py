"""Weights on the Hugging Face hub, by the optional package `huggingface_hub`.

  hf://OWNER/NAME[/PATH][@REVISION]

names a repository of models, or a folder or a file in it, at a branch, a tag or a commit; by
default at the newest commit of its main branch. It is downloaded to that package's cache, below
$HF_HOME, where processes of one host take turns; a download that breaks leaves no file there.

A process looks a repository up once: while it runs, all parts that it takes are of one commit.
"""

import contextlib
import functools
import glob
import logging
import os
import pathlib
import posixpath
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

log = logging.getLogger(__name__)

_FORM = "hf://OWNER/NAME[/PATH][@REVISION]"
_REPOSITORY = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_NAME = re.compile(rf"hf://({_REPOSITORY})(?:/([^@]*))?(?:@(.+))?", re.ASCII)

# Formats that are never read here, but lie beside those that are, as large.
_OTHER_FORMATS = ("*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.ot", "*.tflite", "*.gguf")
_PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")

_commits: dict[tuple[str, str | None], str] = {}  # By repository and revision.
_used: dict[str, str] = {}  # The commits, by the names that were asked for.
_snapshots: dict[pathlib.Path, str] = {}  # The repository of each folder in the cache.


class _Name(NamedTuple):
  repository: str
  path: str
  revision: str | None

  def __str__(self) -> str:
    path = f"/{self.path}" if self.path else ""
    return f"hf://{self.repository}{path}" + (f"@{self.revision}" if self.revision else "")


class Pushed(NamedTuple):
  """An upload: the address of its repository, its commit, and how many old files it deleted."""

  address: str
  commit: str
  num_deleted: int


def is_hub(path: str | os.PathLike) -> bool:
  """Returns whether a path is of the hub."""
  return os.fspath(path).startswith("hf:/")


def spelling(path: str | os.PathLike) -> str:
  """Returns a path as it is written: a `Path` has lost one slash of a name of the hub."""
  text = os.fspath(path)
  return f"hf://{text[4:].lstrip('/')}" if is_hub(path) else text


def without_revision(path: str) -> str:
  """Returns a path without the `@REVISION` that a name of the hub may end with."""
  return path.partition("@")[0] if is_hub(path) else path


def check_repository(name: str, flag: str) -> None:
  """Raises ValueError if a text is not OWNER/NAME."""
  if not re.fullmatch(_REPOSITORY, name, re.ASCII):
    raise ValueError(f"{flag}={name} must be OWNER/NAME, such as my-name/my-model")


def local(path: Any, field: str = "", *, has_pickles: bool = False) -> Any:
  """Returns a local path as it is, or where a file or a folder of the hub was downloaded to.

  Args:
    path: a text or a `Path`, and so is the result.
    field: name of the config field or the flag, for errors.
    has_pickles: whether files that PyTorch pickled are wanted, too.
  Raises:
    ValueError: the name is wrong, there is no such file or folder, it may not be read, or the hub
      cannot be reached and the cache lacks it.
  """
  if not is_hub(path):
    return path
  try:
    found = _download(_parse(spelling(path)), has_pickles)
  except ValueError as error:
    raise ValueError(f"{field}={error}" if field else str(error)) from error
  return str(found) if isinstance(path, str) else found


def origin(path: str | os.PathLike) -> str | None:
  """Returns the name of what was downloaded to a path, with its commit; None for other paths."""
  path = pathlib.Path(local(path))
  for folder in (path, *path.parents):
    if folder in _snapshots:
      inner = path.relative_to(folder).as_posix()
      return str(_Name(_snapshots[folder], "" if inner == "." else inner, folder.name))
  return None


def commits() -> dict[str, str]:
  """Returns the commits that this process took, by the names that it was asked for."""
  return dict(_used)


def push(
  repository: str,
  files: Mapping[str, pathlib.Path | bytes],
  message: str,
  *,
  is_private: bool,
  field: str,
  manifest: str,
  listed: Callable[[bytes], Collection[str]],
) -> Pushed:
  """Uploads files in one commit, so that nobody loads half of them, nor old ones beside new ones.

  Args:
    repository: OWNER/NAME; made if there is none.
    files: by their paths in the repository.
    message: of the commit.
    is_private: whether the repository must be private; a new one is made so.
    field: name of the flag that names the repository, for errors.
    manifest: path of a file that lists the files of an upload. What that of the newest commit lists
      and `files` lacks is deleted; other files stay.
    listed: returns the paths that a manifest lists; none if it is not one.
  Raises:
    ValueError: the hub cannot be reached, or refuses, or the repository is public but must not be;
      nothing was uploaded.
  """
  package = _package(repository)
  api = package.HfApi()
  operations = [package.CommitOperationAdd(name, content) for name, content in files.items()]
  name = f"{field}={repository}"
  with _errors(name, "written"):
    address = api.create_repo(repository, private=is_private or None, exist_ok=True)
    before = api.repo_info(repository)
  if is_private and before.private is False:
    raise ValueError(
      f"{name} is there already, and public; make it private on its page, or leave out --private"
    )
  with _errors(name, "written"):
    there = {sibling.rfilename for sibling in before.siblings or ()}
    old: set[str] = set()
    if manifest in there:
      path = api.hf_hub_download(repository, manifest, revision=before.sha)
      old = there & set(listed(pathlib.Path(path).read_bytes())) - files.keys()
    operations += [package.CommitOperationDelete(path, is_folder=False) for path in sorted(old)]
    # Refused if another upload came between.
    done = api.create_commit(
      repository, operations, commit_message=message, parent_commit=before.sha
    )
  return Pushed(str(address), done.oid, len(old))


def _parse(path: str) -> _Name:
  found = _NAME.fullmatch(path)
  inner = [] if found is None else (found[2] or "").rstrip("/").split("/")
  if found is None or not {"", ".", ".."}.isdisjoint(inner if inner != [""] else []):
    raise ValueError(f"{path}: names of the hub have the form {_FORM}")
  return _Name(found[1], "/".join(inner), found[3])


@functools.cache
def _download(name: _Name, has_pickles: bool) -> pathlib.Path:
  """Returns the path of a file or a folder in the cache, which is completed first."""
  package, wanted = _package(str(name)), None
  if name.path:
    # Pipelines have the tokenizer of a text encoder in a folder beside it.
    tokenizer = posixpath.join(posixpath.dirname(name.path), "tokenizer/tokenizer.json")
    path = glob.escape(name.path)
    wanted = [path, f"{path}/*", glob.escape(tokenizer)]
  key = name.repository, name.revision
  with _errors(str(name), "downloaded"):
    folder = package.snapshot_download(
      name.repository,
      revision=_commits.get(key, name.revision),
      allow_patterns=wanted,
      ignore_patterns=[*_OTHER_FORMATS, *(() if has_pickles else _PICKLES)],
    )
  folder = pathlib.Path(folder)
  path, commit = folder / name.path, folder.name
  if not path.exists():
    what = name.path or "files"
    raise ValueError(f"{name}: the repository has no {what} that can be read here, at {commit}")
  _commits[key] = _used[str(name)] = commit
  _snapshots[folder] = name.repository
  log.info("%s is of commit %s", name, commit)
  return path


def _package(name: str):
  try:
    import huggingface_hub
  except ImportError as error:
    raise ValueError(f"{name} needs an optional package; pip install 'videoar_jax[hub]'") from error
  return huggingface_hub


@contextlib.contextmanager
def _errors(name: str, doing: str) -> Iterator[None]:
  """Turns errors, of many types, into a ValueError that says what to do.

  Args:
    name: what is up- or downloaded.
    doing: what is done with it, as a participle.
  """
  try:
    yield
  except MemoryError:
    raise
  except Exception as error:  # The library lets those of its HTTP client pass.
    raise ValueError(f"{name}: {_reason(error, doing)}") from error


def _reason(error: Exception, doing: str) -> str:
  from huggingface_hub import errors

  if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
    cause = _reason(error.__cause__, doing) if _status(error.__cause__) else _line(error.__cause__)
    return f"the hub cannot be reached, and the cache below $HF_HOME lacks files of it ({cause})"
  if isinstance(error, errors.GatedRepoError):
    return "access is granted on its page; ask for it there, and set HF_TOKEN to your token"
  if isinstance(error, errors.RevisionNotFoundError):
    return f"there is no such revision; names have the form {_FORM}"
  if isinstance(error, errors.RepositoryNotFoundError) or _status(error) in (401, 403):
    if doing == "written":
      return "the hub refuses; check the name, and set HF_TOKEN to a token that may write to it"
    return (
      "there is no such repository, or it is private; check the name, or set HF_TOKEN to a token "
      "that may read it"
    )
  return f"it cannot be {doing} ({_line(error)}); try again"


def _status(error: BaseException) -> int | None:
  """Returns the status of the hub's answer; None if there was none."""
  return getattr(getattr(error, "response", None), "status_code", None)


def _line(error: BaseException) -> str:
  return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
