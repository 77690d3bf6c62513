"""Clips from a folder of video files."""


class FolderSource:
  """Not there yet."""

  def __init__(self, *args, **kwargs):
    raise NotImplementedError
