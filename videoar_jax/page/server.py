"""Serves the page: a port, a model, and a web server that ends with the command."""

import contextlib
import errno
import pathlib
import socket

from videoar_jax.experiment.load import find_run, find_stage, load_model
from videoar_jax.experiment.model_folder import is_model
from videoar_jax.models.families import FAMILIES
from videoar_jax.nn.layers import count_parameters
from videoar_jax.page.run_view import RunView
from videoar_jax.page.studio import Studio

EXTRA = "the page needs the extra `playground`: pip install 'videoar_jax[playground]'"


def check_installed() -> None:
  """Raises ImportError with the command that installs what the page needs."""
  try:
    import gradio  # noqa: F401
  except ImportError as error:
    raise ImportError(EXTRA) from error


def open_port(host: str, port: int) -> socket.socket:
  """Returns a socket that listens, so that the address is ours before the model is loaded.

  Args:
    host: name or address of this machine.
    port: number; 0 takes any that is free.
  Raises:
    ValueError: the port is in use, or the address cannot be used; says which flag to change.
  """
  if not 0 <= port < 2**16:
    raise ValueError(f"--port={port} must be from 0 to {2**16 - 1}")
  listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
  listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
  try:
    listener.bind((host, port))
    listener.listen()
  except OSError as error:
    listener.close()
    if error.errno == errno.EADDRINUSE:
      raise ValueError(
        f"--port={port} of {host} is in use; name another one, or 0 for any that is free"
      ) from error
    if error.errno == errno.EACCES:
      raise ValueError(f"--port={port} needs rights; name one of at least 1024") from error
    raise ValueError(
      f"--host={host}: {error.strerror or error}; name an address of this machine"
    ) from error
  return listener


def load_studio(model: str, **settings) -> tuple[Studio, str]:
  """Loads a model; returns what makes clips with it, and its description.

  Args:
    model: a workdir, a checkpoint in one, or a model's folder.
    **settings: see `load.load_model`.
  Raises:
    FileNotFoundError, ValueError: there is none.
  """
  run, stage = find_stage(model, "generator", settings.get("text_features"))
  loaded = load_model(model, **settings)
  name = next(name for name, family in FAMILIES.items() if family is run.family)
  height, width = loaded.resolution
  facts = [str(model), name]
  if hasattr(loaded, "generator"):
    facts.append(f"{_short(count_parameters(loaded.generator))} parameters")
  clips = f"{loaded.num_frames} frames of {width}x{height}, {stage.data.frame_rate:g} a second"
  facts.append(clips if loaded.num_frames > 1 else f"images of {width}x{height}")
  return Studio(loaded, run, stage), " · ".join(facts)


def find_view(workdir: str) -> RunView | None:
  """Returns the view of a run; None for the folder of a model, which has no history.

  Raises:
    FileNotFoundError, ValueError: there is no run.
  """
  folder, run = find_run(workdir, needs_text=False)
  return None if is_model(folder) else RunView(pathlib.Path(folder), run)


def serve(studio: Studio, view: RunView | None, title: str, listener: socket.socket) -> None:
  """Serves the page until the process is interrupted."""
  import uvicorn

  from videoar_jax.page.app import build

  config = uvicorn.Config(
    build(studio, view, title),
    log_level="warning",
    access_log=False,
    timeout_graceful_shutdown=2,  # Pages that are open keep a connection.
  )
  with contextlib.closing(listener), contextlib.suppress(KeyboardInterrupt):
    uvicorn.Server(config).run(sockets=[listener])


def address(listener: socket.socket) -> str:
  """Returns the address of the page."""
  host, port, *_ = listener.getsockname()
  shown = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, host)
  return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}"


def _short(number: int) -> str:
  for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
    if number >= size:
      return f"{number / size:.3g}{unit}"
  return str(number)
