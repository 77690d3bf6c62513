"""Files that a run writes during training."""

import json

from videoar_jax.train.logging import RunLog


def test_a_log_knows_the_time_of_the_steps_that_it_drops(tmp_path):
  # Rates are of some steps each: those of the last two steps say nothing of the four before.
  records = [{"step": step, "steps_per_s": 1.0 if step > 6 else 4.0} for step in range(1, 9)]
  (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
  for first_step, expected in ((2, 3.0), (2, 0.0)):  # What was dropped is lost once.
    log = RunLog(tmp_path, first_step=first_step, num_steps=9, name="I", frame_rate=8.0)
    log.close()
    assert log.lost_s == expected
