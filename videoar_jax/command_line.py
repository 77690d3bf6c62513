"""What the command lines share: an error takes one line, defaults are shown."""

import argparse
import sys


class Parser(argparse.ArgumentParser):
  """Tells of errors in one line, as the rest of the package does."""

  def error(self, message):
    print(f"error: {message}; see --help", file=sys.stderr)
    raise SystemExit(2)


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
  """Shows defaults, and the example as it is written."""


def one_line(error: Exception) -> str:
  """Returns an error's text without its line breaks."""
  return " ".join(str(error).split())
