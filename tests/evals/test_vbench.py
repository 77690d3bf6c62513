"""VBench folders: names, counts, resuming, completeness; VBench's own check; its results."""

import json
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest

from configs import quickstart
from videoar_jax import evaluate
from videoar_jax.evals import vbench, vbench_export
from videoar_jax.experiment import load, parse
from videoar_jax.text.tokenizers import ByteTokenizer

PROMPTS = [
  {"prompt_en": "a red cat, close-up", "dimension": ["color"]},
  {"prompt_en": "In a still frame, façades", "dimension": ["temporal_flickering"]},
  {"prompt_en": "a person walks", "dimension": ["human_action", "subject_consistency"]},
  {"prompt_en": "a red cat, close-up", "dimension": ["scene"]},
]


class Painter:
  """Shows each clip's number as its colour; is killed after so many batches."""

  num_frames, resolution, batch_size = 5, (64, 64), 4

  def __init__(self):
    self.text_encoder = ByteTokenizer(72)
    self.calls, self.last = [], None

  def sample(self, prompts, num_frames=None, seed=0, *, sample_ids=None, **settings):
    if len(self.calls) == self.last:
      raise KeyboardInterrupt
    self.calls.append(list(zip(prompts, sample_ids, strict=True)))
    clips = (np.array(sample_ids) % 256).astype(np.uint8)[:, None, None, None, None]
    return np.broadcast_to(clips, (len(prompts), self.num_frames, 64, 64, 3))

  def num_steps(self, num_frames=None):
    return 12


@pytest.fixture
def model(monkeypatch):
  model = Painter()
  monkeypatch.setattr(load, "load_model", lambda path, **settings: model)
  monkeypatch.setattr(load, "describe_checkpoint", lambda path: "run at 8")
  return model


@pytest.fixture
def run(tmp_path, model):
  """Runs the command line with a list of prompts, in a workdir; returns the exit status."""
  workdir = tmp_path / "run"
  workdir.mkdir()
  parse.save_config(quickstart.get_config(), workdir / "config.json")
  (tmp_path / "info.json").write_text(json.dumps(PROMPTS))

  def call(*flags):
    own = [f"--vbench_info={tmp_path}/info.json", f"--out={tmp_path / 'out'}"]
    return evaluate.main([f"--workdir={workdir}", "--suite=vbench", *own, *flags])

  return call


def names_in(tmp_path):
  return sorted(path.name for path in (tmp_path / "out" / "videos").iterdir())


def test_names_counts_and_numbers(tmp_path, model, run, capsys):
  assert run("--dimensions=color,temporal_flickering", "--seed=3") == 0
  printed = capsys.readouterr().out
  wanted = [f"a red cat, close-up-{i}.mp4" for i in range(5)]
  wanted += [f"In a still frame, façades-{i}.mp4" for i in range(25)]
  assert names_in(tmp_path) == sorted(wanted)
  # Numbers follow from the place in VBench's list, whatever the dimensions.
  made = dict.fromkeys(pair for call in model.calls for pair in call)
  ids = {prompt: [i for text, i in made if text == prompt] for prompt, _ in made}
  assert ids == {PROMPTS[0]["prompt_en"]: [*range(5)], PROMPTS[1]["prompt_en"]: [*range(25, 50)]}
  manifest = json.loads((tmp_path / "out" / "vbench.json").read_text())
  assert manifest["made_with"]["seed"] == 3 and len(manifest["clips"]) == 30
  assert manifest["clips"][6] == {
    "file": "In a still frame, façades-1.mp4",
    "prompt": PROMPTS[1]["prompt_en"],
    "sample_id": 26,
  }
  assert "30 clips for 2 dimensions" in printed and "static_filter.py" in printed
  cost = json.loads((tmp_path / "out" / "vbench_cost.json").read_text())
  assert cost["seconds_a_clip"] > 0 and cost["steps_a_clip"] == 12
  # Another dimension adds to the folder; a prompt that is there is not made again.
  model.calls.clear()
  assert run("--dimensions=scene,human_action", "--seed=3") == 0
  assert {text for call in model.calls for text, _ in call} == {"a person walks"}
  assert len(json.loads((tmp_path / "out" / "vbench.json").read_text())["clips"]) == 35


def test_resumes_after_a_kill(tmp_path, model, run):
  model.last = 1
  with pytest.raises(KeyboardInterrupt):
    run("--dimensions=color,human_action")
  folder = tmp_path / "out" / "videos"
  before = {name: (folder / name).stat().st_mtime_ns for name in names_in(tmp_path)}
  assert len(before) == 4
  (folder / "a person walks-3.mp4.0123abcd.partial").touch()
  (folder / "a person walks-4.mp4").touch()  # Empty: not a clip.
  model.last = None
  model.calls.clear()
  assert run("--dimensions=color,human_action") == 0
  assert len(names_in(tmp_path)) == 10 and not [x for x in names_in(tmp_path) if "partial" in x]
  assert len({pair for call in model.calls for pair in call}) == 6
  for name, time in before.items():
    assert (folder / name).stat().st_mtime_ns == time


def test_processes_share_the_clips(tmp_path, model, monkeypatch):
  clips = vbench.clips_of(PROMPTS, ["color", "human_action", "temporal_flickering"])
  jax = vbench_export.jax
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  for name in ("try_in_all", "wait_for_all"):
    action = (lambda action: action()) if name == "try_in_all" else (lambda what: None)
    monkeypatch.setattr(vbench_export.processes, name, action)
  made = []
  for process in range(2):
    monkeypatch.setattr(jax, "process_index", lambda process=process: process)
    model.calls.clear()
    (tmp_path / str(process) / "videos").mkdir(parents=True)
    # Alone, neither has all.
    with pytest.raises(
      ValueError, match=r"lacks \d+ of 35 clips, such as .*; run the same command"
    ):
      vbench_export.export(model, clips, tmp_path / str(process), 4.0, {}, seed=1)
    made.append({pair for call in model.calls for pair in call})
  assert not made[0] & made[1] and len(made[0] | made[1]) == 35


@pytest.mark.parametrize(
  ("flags", "wanted"),
  [
    (["--dimensions=colour"], "'colour' is unknown; known are subject_consistency, temporal_fl"),
    (["--vbench_info={tmp}/none.json"], "--vbench_info={tmp}/none.json cannot be read"),
    (["--vbench_info={tmp}/bad.json"], "bad.json is no list of prompts with their dimensions"),
    (["--seed=-1"], "--seed=-1 must be in [0, 2^32)"),
  ],
)
def test_bad_input_is_one_line(tmp_path, run, capsys, flags, wanted):
  (tmp_path / "bad.json").write_text('[{"prompt": "a"}]')
  assert run(*[flag.format(tmp=tmp_path) for flag in flags]) == 2
  error = capsys.readouterr().err
  assert wanted.format(tmp=tmp_path) in error and error.count("\n") == 1


def test_folders_with_anything_else_are_refused(tmp_path, model, run, capsys):
  assert run("--dimensions=color") == 0
  assert run("--dimensions=color", "--seed=1") == 2
  assert "has clips of another seed: 0, now 1; name another folder" in capsys.readouterr().err
  (tmp_path / "out" / "videos" / "a.json").touch()
  assert run("--dimensions=color") == 2
  assert "has 'a.json', but VBench takes the ending" in capsys.readouterr().err
  model.text_encoder = ByteTokenizer(8)
  (tmp_path / "out" / "videos" / "a.json").unlink()
  assert run("--dimensions=color") == 2
  assert "error: " in capsys.readouterr().err
  with pytest.raises(ValueError, match="cannot be the name of a file"):
    vbench.clips_of([{"prompt_en": "a/b", "dimension": ["color"]}], ["color"])


CHECK = """
import json, sys, types
for name in ("torch", "decord", "torchvision", "torchvision.transforms", "cv2"):
  sys.modules.setdefault(name, types.ModuleType(name))
# Of VBench's helpers, which need PyTorch, its file check uses only these.
utils = types.ModuleType("vbench.utils")
utils.load_json = lambda path: json.load(open(path))
utils.save_json = lambda value, path: json.dump(value, open(path, "w"))
utils.get_prompt_from_filename = utils.init_submodules = None
distributed = types.ModuleType("vbench.distributed")
distributed.get_rank, distributed.print0 = (lambda: 0), print
sys.modules |= {"vbench.utils": utils, "vbench.distributed": distributed}
import vbench
videos, out, info, *dimensions = sys.argv[1:]
path = vbench.VBench("cpu", info, out).build_full_info_json(videos, "check", dimensions)
found = json.load(open(path))
print(json.dumps([[x["prompt_en"], len(x["video_list"])] for x in found]))
"""


def check_by_vbench(videos, out, info, dimensions):
  """Returns what VBench's own file check prints, and (prompt, number of clips) of what it found."""
  spec = vbench.importlib.util.find_spec("vbench")
  if spec is None:
    pytest.skip("the package vbench is not installed: `pip install --no-deps vbench`")
  place = str(pathlib.Path(spec.submodule_search_locations[0]).parent)
  done = subprocess.run(
    [sys.executable, "-c", CHECK, str(videos), str(out), str(info), *dimensions],
    env={"PYTHONPATH": place, "PATH": ""},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  *lines, last = done.stdout.splitlines()
  return lines, [tuple(pair) for pair in json.loads(last)]


def test_vbench_finds_all_clips(tmp_path, run):
  dimensions = ["color", "temporal_flickering", "human_action"]
  assert run(f"--dimensions={','.join(dimensions)}") == 0
  where = tmp_path / "out" / "videos", tmp_path, tmp_path / "info.json"
  lines, found = check_by_vbench(*where, dimensions)
  assert not [line for line in lines if "WARNING" in line]
  assert found == [(entry["prompt_en"], 5) for entry in PROMPTS[:3]]
  (tmp_path / "out" / "videos" / "a person walks-2.mp4").unlink()
  lines, found = check_by_vbench(*where, dimensions)
  assert found[2] == ("a person walks", 4) and len([x for x in lines if "WARNING" in x]) == 1


@pytest.mark.slow
def test_vbench_finds_the_clips_of_its_own_prompts(tmp_path, run):
  if vbench.importlib.util.find_spec("vbench") is None:
    pytest.skip("the package vbench is not installed: `pip install --no-deps vbench`")
  info = vbench.find_info(None)
  dimensions = ["subject_consistency", "color"]
  flags = [f"--dimensions={','.join(dimensions)}", f"--vbench_info={info}"]
  assert run(*flags) == 0
  lines, found = check_by_vbench(tmp_path / "out" / "videos", tmp_path, info, dimensions)
  assert not [line for line in lines if "WARNING" in line]
  entries = [entry for entry in vbench.read_info(info) if set(dimensions) & {*entry["dimension"]}]
  assert len(entries) > 150 and found == [(entry["prompt_en"], 5) for entry in entries]


RESULTS = {name: [0.5, []] for name in vbench.DIMENSIONS}


def test_scores_follow_from_the_published_weights():
  """Computed here as VBench's `cal_final_score.py` does; constants for two dimensions by hand."""
  scores = {name: 0.5 for name in vbench.DIMENSIONS}
  found = vbench.summary(scores | {"scene": 0.8222, "subject_consistency": 1.0})
  scaled = {name: (0.5 - x.low) / (x.high - x.low) for name, x in vbench.DIMENSIONS.items()}
  scaled |= {"scene": 1.0, "subject_consistency": 1.0}
  quality = [name for name, x in vbench.DIMENSIONS.items() if x.is_quality]
  semantic = [name for name in vbench.DIMENSIONS if name not in quality]
  assert len(quality) == 7 and len(semantic) == 9
  wanted = sum(scaled[name] for name in quality) - 0.5 * scaled["dynamic_degree"]
  assert found["quality"] == pytest.approx(wanted / 6.5)
  assert found["semantic"] == pytest.approx(sum(scaled[name] for name in semantic) / 9)
  assert found["total"] == pytest.approx((4 * found["quality"] + found["semantic"]) / 5)
  assert scaled["subject_consistency"] == 1 and scaled["temporal_style"] == pytest.approx(
    0.5 / 0.364
  )


def test_results_become_a_table(tmp_path, capsys):
  path, out = tmp_path / "run_eval_results.json", tmp_path / "out"
  path.write_text(json.dumps(RESULTS))
  flags = ["--suite=vbench", f"--read={path}", f"--out={out}"]
  assert evaluate.main(flags) == 0
  printed = capsys.readouterr().out
  assert "total score" in printed and "missing" not in printed and "50.00" in printed
  result = json.loads((out / "vbench_scores.json").read_text())
  assert result["total"] == vbench.summary(result["dimensions"])["total"]
  # The costs of the clips' folder stand beside; without a dimension there is no total.
  cost = {"seconds_a_clip": 0.25, "steps_a_clip": 30, "tokens_a_clip": 99, "parameters": 5}
  (out / "vbench_cost.json").write_text(json.dumps(cost | {"device": "x", "num_devices": 2}))
  path.write_text(json.dumps({name: x for name, x in RESULTS.items() if name != "scene"}))
  assert evaluate.main(flags) == 0
  printed = capsys.readouterr().out
  lines = {line[:26].strip(): line[26:].strip() for line in printed.splitlines()}
  assert lines["total score"] == lines["semantic score"] == "not measured"
  assert lines["seconds a clip"] == "0.25" and "missing: scene" in printed
  result = json.loads((out / "vbench_scores.json").read_text())
  assert result["quality"] is not None and result["cost"]["num_devices"] == 2


@pytest.mark.parametrize(
  ("text", "wanted"),
  [
    ("[]", "has no scores by dimension"),
    ("{", "is not valid JSON"),
    ('{"i2v_subject": [0.9, []]}', "'i2v_subject', which VBench 1 does not know: it is of another"),
    ('{"color": 0.5}', "color must be [score, clips] with a score up to 1, found None"),
    ('{"imaging_quality": [61.2, []]}', "found 61.2; it is of another version"),
  ],
)
def test_results_of_another_version_are_one_line(tmp_path, capsys, text, wanted):
  path = tmp_path / "results.json"
  path.write_text(text)
  assert evaluate.main(["--suite=vbench", f"--read={path}", f"--out={tmp_path / 'o'}"]) == 2
  error = capsys.readouterr().err
  assert wanted in error and error.count("\n") == 1
  assert not (tmp_path / "o").exists()


def test_flags_of_vbench_are_its_own(tmp_path, capsys):
  assert evaluate.main(["--workdir=x", "--suite=generation", "--read=y"]) == 2
  assert "--read is for --suite=vbench; remove it" in capsys.readouterr().err
  assert evaluate.main(["--suite=generation"]) == 2
  assert "--workdir is missing" in capsys.readouterr().err
  assert types.ModuleType("vbench")  # The package itself is never imported.
  assert "vbench" not in sys.modules
