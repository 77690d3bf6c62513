"""Opens files of Hugging Face `tokenizers`, an optional package."""

import os


def open_tokenizer(path: str | os.PathLike):
  """Returns the tokenizer of a JSON file, without padding or truncation.

  Raises:
    ValueError: the file cannot be read, or the package is missing.
  """
  try:
    import tokenizers
  except ImportError as error:
    raise ValueError(
      f"{path} needs an optional package; pip install 'videoar_jax[tokenizers]'"
    ) from error
  try:
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # The package raises nothing narrower.
    raise ValueError(f"{path} is not a tokenizer file: {error}") from error
  tokenizer.no_padding()
  tokenizer.no_truncation()
  return tokenizer
