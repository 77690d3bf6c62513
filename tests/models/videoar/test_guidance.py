"""Schedules and tables of guidance."""

import json

import numpy as np
import pytest
from tiny_runs import make_mixed_config

from videoar_jax.experiment.parse import finalize
from videoar_jax.models.videoar import guidance
from videoar_jax.models.videoar.sequences import all_layouts, guidance_of, guidance_shapes


def test_guidance_schedules(tmp_path):
  table = guidance.guidance_table("ucf101", 5, 6)
  np.testing.assert_allclose(table[:, 0], [1, 2, 3, 4, 5])
  np.testing.assert_allclose(table[:, -1], 10)
  np.testing.assert_allclose(np.diff(table[1]), 8 / 5, rtol=1e-5)
  t2v = guidance.guidance_table("t2v", 5, 6)
  assert t2v[0, 0] == 5 and t2v[-1, -1] == 3 and (np.diff(t2v.reshape(-1)) < 0).all()
  assert (guidance.guidance_table("constant:3", 2, 2) == 3).all()
  assert (guidance.guidance_table(1.5, 2, 2) == 1.5).all()
  (tmp_path / "g.json").write_text("[[1, 2], [3, 4]]")
  assert guidance.guidance_table(str(tmp_path / "g.json"), 2, 2)[1, 0] == 3
  with pytest.raises(ValueError, match=r"\(2, 2\).*\(3, 2\)"):
    guidance.guidance_table(str(tmp_path / "g.json"), 3, 2)
  with pytest.raises(ValueError, match="unknown"):
    guidance.guidance_table("strong", 3, 2)
  for text in ('{"1": [2]}', "[[1, 2], [3]]", f"[[{10**400}, 1]]"):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ValueError, match=r"bad\.json holds no table of numbers"):
      guidance.guidance_table(str(tmp_path / "bad.json"), 1, 2)


def test_guidance_of_a_clip_of_another_length(tmp_path):
  """The first rows are those of the trained length; further frames repeat the last row."""
  (tmp_path / "g.json").write_text("[[1, 2], [3, 4], [5, 6]]")
  for spec in ("ucf101", "t2v", str(tmp_path / "g.json")):
    trained = guidance.guidance_table(spec, 3, 2)
    np.testing.assert_array_equal(guidance.guidance_table(spec, 2, 2, 3), trained[:2])
    longer = guidance.guidance_table(spec, 5, 2, 3)
    np.testing.assert_array_equal(longer, trained[[0, 1, 2, 2, 2]])
  # A table for this very clip counts, too; others do not.
  assert guidance.guidance_table(str(tmp_path / "g.json"), 3, 2, 5)[2, 1] == 6
  with pytest.raises(ValueError, match=r"need \(4, 2\) or \(5, 2\)"):
    guidance.guidance_table(str(tmp_path / "g.json"), 4, 2, 5)


def test_a_table_serves_stages_of_several_lengths(tmp_path):
  """Those of a run: it is made for the longest clips, and shorter ones take its first rows."""
  path = tmp_path / "g.json"
  config = make_mixed_config(**{"sampling.guidance": str(path)})
  shapes = [(1, 3), (1, 5), (3, 3)]
  path.write_text(json.dumps(np.zeros((2, 3)).tolist()))
  with pytest.raises(
    ValueError, match=r"has shape \(2, 3\), but .* need \(1, 3\) or \(1, 5\) or \(3, 3\)"
  ):
    finalize(config)
  table = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
  path.write_text(json.dumps(table))
  run = finalize(config)
  assert sorted(guidance_shapes(run)) == shapes
  found = {guidance_of(run, layout).shape: guidance_of(run, layout) for layout in all_layouts(run)}
  np.testing.assert_array_equal(found[3, 3], table)
  np.testing.assert_array_equal(found[1, 3], [[1, 2, 3]])
  np.testing.assert_array_equal(found[1, 5], [[1, 2, 3, 3, 3]])
