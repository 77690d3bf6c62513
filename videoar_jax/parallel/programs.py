"""Compiled programs that later processes load from files, without tracing them again.

JAX's compilation cache finds a program by its text, so each process has to trace and lower it
first, which takes longer than to make a clip. Here it is found by what the text follows from: the
arguments' structure, shapes and types, the static values, this package's code, versions, settings,
and the machine.

The files hold machine code, and JAX unpickles them: like JAX's cache, they are in the user's own
cache folder, never in a workdir or a model's folder, which others may have made.
"""

import contextlib
import functools
import hashlib
import logging
import os
import pathlib
import platform
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from videoar_jax.interop.atomic import replacing
from videoar_jax.parallel.compiler import compiler_options
from videoar_jax.runtime.versions import installed

log = logging.getLogger(__name__)

_MAX_FILES = 100  # Of a folder; those that were not used for longest are removed.
_SUFFIX = ".program"
_PACKAGE = pathlib.Path(__file__).parent.parent
_CODE = ("nn", "parallel", "tokenizers", "models")  # Parts whose code becomes programs.
_folder: pathlib.Path | None = None


def keep_programs_in(folder: pathlib.Path | None) -> None:
  """Turns the files on, in a folder that is made when needed; None turns them off."""
  global _folder
  _folder = folder


class Program:
  """A function of arrays, jitted, whose compiled programs are kept in files.

  Files are used on one device, without a mesh. A program that cannot be stored or loaded is
  compiled as usual, which the log says.

  Args:
    function: from arrays in trees, passed by position, and static values, passed by name, to one
      array. It must not depend on anything else but the package's code.
    static_argnames: names of the static values, which are hashable and whose `repr` says all.
    is_decoding: see `compiler_options`.
  """

  def __init__(
    self,
    function: Callable,
    *,
    static_argnames: tuple[str, ...] = (),
    is_decoding: bool = False,
  ):
    self.name = f"{function.__module__}.{function.__qualname__}"
    self._function, self._static_argnames = function, static_argnames
    self._is_decoding = is_decoding
    self._compiled: dict[Any, Callable] = {}

  @functools.cached_property
  def jitted(self) -> Callable:
    """The function under `jax.jit`, for other calls. Made late: it asks for the backend."""
    return jax.jit(
      self._function,
      static_argnames=self._static_argnames,
      compiler_options=compiler_options(jax.default_backend(), is_decoding=self._is_decoding),
    )

  def __call__(self, *arguments, **static):
    """Calls the function."""
    if _folder is None or not jax.sharding.get_abstract_mesh().empty:
      return self.jitted(*arguments, **static)
    leaves, tree = jax.tree.flatten(arguments)
    leaves = [x if isinstance(x, jax.Array) else np.asarray(x) for x in leaves]
    if not all(map(_is_on_first_device, leaves)):
      return self.jitted(*arguments, **static)
    kinds = tuple((x.shape, x.dtype, getattr(x, "weak_type", False)) for x in leaves)
    key = tree, kinds, tuple(sorted(static.items()))
    arguments = jax.tree.unflatten(tree, leaves)
    if key not in self._compiled:
      return self._call_first(_folder, key, arguments, static)
    return self._compiled[key](*arguments)

  def _call_first(self, folder: pathlib.Path, key, arguments, static):
    """Calls a program that this process has not called yet, from its file if there is one."""
    tree, kinds, _ = key
    text = f"{self.name}\n{tree}\n{kinds}\n{sorted(static.items())}\n{_circumstances()}"
    if " at 0x" in text:  # Something is described by its address, which says nothing.
      self._compiled[key] = functools.partial(self.jitted, **static)
      return self._compiled[key](*arguments)
    # Code that was edited often makes the same program: a small file for each state of the code
    # names the file of the program.
    note = folder / hashlib.sha256(f"{text}\n{_code_hash()}".encode()).hexdigest()
    in_tree = jax.tree.structure((arguments, {}))
    if note.is_file():
      path = folder / note.read_text()
    else:
      lowered = self.jitted.lower(*arguments, **static)
      path = folder / f"{_hash_of(lowered, text)}{_SUFFIX}"
    program = _load(path, in_tree)
    if program is not None:
      try:
        result = jax.block_until_ready(program(*arguments))
        self._compiled[key] = program
        _write(note, path.name.encode())
        return result
      except jax.errors.JaxRuntimeError as error:
        _say_unused(path, error)
    self._compiled[key] = program = self._compile(path, in_tree, arguments, static)
    if path.is_file():
      _write(note, path.name.encode())
    return program(*arguments)

  def _compile(self, path: pathlib.Path, in_tree, arguments, static) -> Callable:
    """Compiles a program, and writes it to a file if it can be."""
    if not path.exists():
      log.info("compiling %s: none is kept for this code, machine and these versions", self.name)
    try:
      with _without_jax_cache():
        compiled = self.jitted.lower(*arguments, **static).compile()
      payload, written_tree, out_tree = serialize_executable.serialize(compiled)
      if written_tree != in_tree or out_tree != jax.tree.structure(0):
        raise ValueError("its arguments or results are not plain")
      _write(path, hashlib.sha256(payload).digest() + payload)
    except Exception as error:  # Backends raise many types for what they cannot serialize.
      log.info("%s is not kept for later processes: %r", self.name, error)
      return functools.partial(self.jitted, **static)
    return compiled


@contextlib.contextmanager
def _without_jax_cache():
  """Leaves JAX's cache out: what it loads cannot be serialized again, and fails when it is run."""
  is_on = jax.config.jax_enable_compilation_cache
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()
  try:
    yield
  finally:
    jax.config.update("jax_enable_compilation_cache", is_on)
    compilation_cache.reset_cache()


def _hash_of(lowered: jax.stages.Lowered, text: str) -> str:
  """Returns a hash of a program before it is compiled, and of its circumstances."""
  # The text has all constants, but no lines of code, which other edits move.
  return hashlib.sha256(f"{text}\n{lowered.as_text()}".encode()).hexdigest()


def _is_on_first_device(x) -> bool:
  return isinstance(x, np.ndarray) or x.sharding.device_set == {jax.devices()[0]}


def _load(path: pathlib.Path, in_tree) -> Callable | None:
  """Returns the program in a file; None if there is none, or it is unsafe or damaged."""
  try:
    content = path.read_bytes()
  except OSError:
    return None
  try:
    if not _is_own(path.parent) or not _is_own(path):
      raise ValueError("others can write to it")
    digest, payload = content[:32], content[32:]
    if hashlib.sha256(payload).digest() != digest:
      raise ValueError("it is cut off or damaged")
    program = serialize_executable.deserialize_and_load(
      payload, in_tree, jax.tree.structure(0), execution_devices=jax.devices()[:1]
    )
  except Exception as error:  # The library raises many types.
    _say_unused(path, error)
    return None
  with contextlib.suppress(OSError):
    os.utime(path)  # The oldest files are removed.
  return program


def _say_unused(path: pathlib.Path, error: Exception) -> None:
  log.warning("the compiled program in %s is not used (%s); it is compiled again", path, error)


def _is_own(path: pathlib.Path) -> bool:
  """Returns whether only this user can write to a file or folder; always true on Windows."""
  facts = path.stat()
  return not hasattr(os, "getuid") or (facts.st_uid == os.getuid() and not facts.st_mode & 0o022)


def _write(path: pathlib.Path, content: bytes) -> None:
  """Writes a file for this user alone, and removes the oldest ones; no error if it cannot."""
  try:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with replacing(path) as partial:
      partial.write_bytes(content)
      partial.chmod(0o600)
    files = sorted(path.parent.iterdir(), key=lambda file: file.stat().st_mtime)
    for file in files[:-_MAX_FILES]:
      file.unlink(missing_ok=True)
  except OSError as error:
    log.info("%s is not written: %s", path, error)


@functools.cache
def _code_hash() -> str:
  """Returns a hash of the code that programs are made of."""
  digest = hashlib.sha256()
  for part in _CODE:
    for file in sorted((_PACKAGE / part).rglob("*.py")):
      digest.update(file.relative_to(_PACKAGE).as_posix().encode() + b"\n" + file.read_bytes())
  return digest.hexdigest()


def _circumstances() -> str:
  """Describes what a program depends on besides its function and arguments."""
  device = jax.devices()[0]
  settings = {name: value for name, value in jax.config.values.items() if "cache" not in name}
  flags = {name: os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
  versions = [installed(name) for name in ("Python", "jax", "jaxlib", "flax")]
  client = f"{device.platform} {device.client.platform_version} {device.device_kind}"
  return "\n".join(map(str, (versions, client, _processor(), flags, sorted(settings.items()))))


def _processor() -> str:
  """Describes the processor: programs use its instructions and as many threads as it has."""
  num = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  lines = []
  with contextlib.suppress(OSError):
    text = pathlib.Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    names = ("model name", "flags", "Features", "CPU part")
    lines = [line for line in text.splitlines() if line.startswith(names)]
  return f"{num} {platform.machine()} {platform.processor()} {lines}"
