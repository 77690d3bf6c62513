"""Uploads a model's folder to the Hugging Face hub, with a page about it."""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

from videoar_jax.experiment import model_folder, paths
from videoar_jax.experiment.model_card import SHEET, model_card
from videoar_jax.interop import hub

_PNG = b"\x89PNG\r\n\x1a\n"


def push_model(
  folder: pathlib.Path,
  repository: str,
  *,
  is_private: bool = False,
  license_name: str | None = None,
  scores: pathlib.Path | None = None,
  sheet: pathlib.Path | None = None,
) -> str:
  """Uploads a model in one commit; returns a summary, with the address.

  The folder is read alone. Files that it has besides those of the model stay where they are. Files
  of an earlier model in the repository are deleted, unless this one has them; others stay.

  Args:
    folder: of the model.
    repository: OWNER/NAME; made if there is none.
    is_private: whether the repository must be private; a new one is made so.
    license_name: see `model_card`.
    scores: JSON file that `evaluate` wrote, for the page.
    sheet: PNG picture of samples, for the page.
  Raises:
    ValueError, OSError: names the flag or the file, and the reason; nothing was uploaded.
  """
  hub.check_repository(repository, "--to")
  if not model_folder.is_model(folder):
    raise ValueError(
      f"--model={folder} is no model's folder, which has a file {model_folder.FILE}; make one: "
      "`python -m videoar_jax.convert --help`"
    )
  numbers = None if scores is None else _read_scores(scores)
  if sheet is not None:
    _check_picture(sheet)
  page = model_card(
    folder,
    repository,
    license_name=license_name,
    scores=numbers,
    has_sheet=sheet is not None,
  )
  model_folder.check_hashes(folder)
  names = json.loads((folder / model_folder.FILE).read_text())["files"]
  _check_complete(folder, names)
  files = {name: folder / name for name in (*names, model_folder.FILE)}
  files["README.md"] = page.encode()
  if sheet is not None:
    files[SHEET] = sheet
  message = f"Upload a model of the family {model_folder.load_values(folder)['family']}"
  pushed = hub.push(
    repository,
    files,
    message,
    is_private=is_private,
    field="--to",
    manifest=model_folder.FILE,
    listed=_files_of,
  )
  deleted = f", {pushed.num_deleted} of an earlier model deleted" if pushed.num_deleted else ""
  return (
    f"{pushed.address}: {len(files)} files{deleted}, commit {pushed.commit}; sample with "
    f"--model=hf://{repository}, or start from it with "
    f"config.stage.NAME.init.from=hf://{repository}"
  )


def _files_of(content: bytes) -> set[str]:
  """Returns the files of a model that was uploaded, from its model.json; none if it is not ours."""
  try:
    return {*json.loads(content)["files"], SHEET}
  except (ValueError, KeyError, TypeError):
    return set()


def _check_complete(folder: pathlib.Path, names: Iterable[str]) -> None:
  """Raises ValueError if what a model's config names is not among the files to upload."""
  values = model_folder.load_values(folder)
  tokenizer, text = values["frozen_tokenizer"], values["text"]["tokenizer"]
  wanted = {"tokenizer": tokenizer} | (
    {} if text in paths.NAMED_TOKENIZERS else {"text encoder": text}
  )
  for what, path in wanted.items():
    place = pathlib.Path(path).relative_to(folder.absolute()).as_posix()
    if not any(name == place or name.startswith(f"{place}/") for name in names):
      raise ValueError(
        f"{folder / model_folder.FILE} lists no {what}, without which nobody can sample; convert "
        "the model again, with all its parts"
      )


def _check_picture(path: pathlib.Path) -> None:
  """Raises ValueError if a file is no PNG picture, OSError if it cannot be read."""
  with path.open("rb") as file:
    if file.read(len(_PNG)) != _PNG:
      raise ValueError(f"--sheet={path} is no PNG picture; name one that `sample` wrote")


def _read_scores(path: pathlib.Path) -> dict[str, Any]:
  """Reads the results of an evaluation.

  Raises:
    ValueError: they are no JSON object. OSError: the file cannot be read.
  """
  try:
    values = json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"--scores={path} is no JSON file ({error})") from error
  if not isinstance(values, dict):
    raise ValueError(f"--scores={path} holds no scores by name; name a file that `evaluate` wrote")
  return values
