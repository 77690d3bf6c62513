"""Files of prompts."""

import pathlib


def read_prompts(path: str) -> list[str]:
  """Reads the file of prompts that `--prompts_file` names: UTF-8, one prompt per line.

  Raises:
    ValueError: names the file, the line and the fix.
  """
  try:
    lines = pathlib.Path(path).read_bytes().splitlines()
  except OSError as error:
    raise ValueError(f"--prompts_file={path} cannot be read ({error.strerror})") from error
  if not lines:
    raise ValueError(f"--prompts_file={path} is empty; write one prompt per line")
  prompts = []
  for number, line in enumerate(lines, start=1):
    try:
      prompts.append(line.decode("utf-8-sig" if number == 1 else "utf-8").strip())
    except UnicodeDecodeError as error:
      where = f"--prompts_file={path}, line {number}"
      raise ValueError(f"{where}: byte {error.start + 1} is not UTF-8; save it as UTF-8") from None
    if not prompts[-1]:
      raise ValueError(f"--prompts_file={path}, line {number} is empty; remove it")
  return prompts
