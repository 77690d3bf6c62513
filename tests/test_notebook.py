"""The notebook of docs/: its cells run unchanged, and no outputs are committed."""

import json
import pathlib

import numpy as np
import pytest

NOTEBOOK = pathlib.Path(__file__).resolve().parent.parent / "docs" / "quickstart.ipynb"


def code_cells():
  """Returns the code cells of the notebook, in order."""
  cells = json.loads(NOTEBOOK.read_text())["cells"]
  return [cell for cell in cells if cell["cell_type"] == "code"]


def test_no_outputs_are_committed():
  assert code_cells()
  assert not [cell for cell in code_cells() if cell["outputs"] or cell["execution_count"]]


@pytest.mark.slow
def test_cells_run_in_order(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  names = {}
  for number, cell in enumerate(code_cells()):
    exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, code cell {number}", "exec"), names)
  clips, longer = names["clips"], names["longer"]
  assert clips.shape == (2, 9, 64, 64, 3) and longer.shape == (2, 17, 64, 64, 3)
  np.testing.assert_array_equal(longer[:, :9], clips)
  # After a few steps they are 0.62 and 9.5 dB.
  assert names["measures"]["bit_accuracy"][0] > 0.7
  assert names["psnr"](names["video"], names["reconstruction"])[0] > 15
