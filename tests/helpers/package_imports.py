"""Finds the imports of the package's files."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "videoar_jax"
SOURCES = sorted(PACKAGE.rglob("*.py"))
IDS = [str(path.relative_to(PACKAGE)) for path in SOURCES]


def imported_modules(path: pathlib.Path, package: str) -> set[str]:
  """Returns the full names of all imports of a file, nested ones included."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ""
      if node.level:
        parents = package.split(".")
        base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [base])])
      # `from a import b` may mean the module a.b.
      names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
  return names
