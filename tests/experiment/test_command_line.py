"""Config files: what they may import, and how their errors are reported."""

import contextlib
import io
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from absl.testing import flagsaver

from videoar_jax import ablation, convert, evaluate, load_model, main, sample
from videoar_jax.data.sources.remote import is_url
from videoar_jax.experiment.command_line import (
  check_local,
  load_config_file,
  print_result,
  read_config,
)

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def test_a_file_imports_its_neighbours_from_any_folder(tmp_path):
  """`from configs.common import ...` imports from the file's own folder, which is not a package."""
  place = shutil.copytree(ROOT / "configs", tmp_path / "elsewhere" / "configs")
  common = (place / "common.py").read_text()
  (place / "common.py").write_text(common.replace("num_bits=24", "num_bits=12"))
  here = tmp_path / "here"
  here.mkdir()
  script = (
    f"import sys; sys.path[:] = [x for x in sys.path if x] + [{str(ROOT)!r}]\n"
    "from videoar_jax.experiment.command_line import read_config\n"
    f"before = list(sys.path)\n"
    f"print(read_config({str(place / 'quickstart.py')!r} + ':size=tiny').tokenizer.num_bits)\n"
    "assert sys.path == before\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", script], cwd=here, capture_output=True, text=True, timeout=300
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert done.stdout == "12\n"


def test_the_command_reads_a_config_from_any_folder(tmp_path):
  """A config by relative or absolute path; an error in it ends with one line and status 2."""
  place = shutil.copytree(ROOT / "configs", tmp_path / "elsewhere" / "configs")
  (place / "mine.py").write_text(
    "from configs import quickstart\n"
    "def get_config(arg=None):\n"
    "  config = quickstart.get_config('size=tiny')\n"
    "  config.data.num_frames = 8\n"
    "  return config\n"
  )
  program = f"import sys, runpy; sys.path.append({str(ROOT)!r}); del sys.argv[0]; "
  program += "runpy.run_module('videoar_jax.main', run_name='__main__', alter_sys=True)"
  for config, status, message in (
    (place / "mine.py", 2, "1 + 4 k"),
    ("../elsewhere/configs/mine.py", 2, "1 + 4 k"),
    (place / "other.py", 2, "other.py does not exist"),
  ):
    here = tmp_path / "here"
    here.mkdir(exist_ok=True)
    flags = ["main", f"--config={config}", "--workdir=run"]
    done = subprocess.run(
      [sys.executable, "-c", program, *flags], cwd=here, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == status and message in done.stderr, done.stderr[-2000:]
    assert done.stderr.count("\n") == 1 and not (here / "run").exists()


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("def get_config(arg=None)\n  pass\n", r"^--config=\S+config\.py: SyntaxError: .*line 1"),
    ("import nothing_like_it\n", r"config\.py, line 1: ModuleNotFoundError: .*nothing_like_it"),
    ("x = 1\n\n\ndef get_config():\n  return y\n", r"config\.py, line 5: NameError: name 'y'"),
    (
      "def get_config():\n  raise ValueError('data= is missing')\n",
      r"config\.py: data= is missing",
    ),
    ("def get_config():\n  pass\n", r"config\.py: get_config does not return a ConfigDict"),
    ("x = 1\n", r"config\.py has no get_config; name a file of configs/"),
    (
      "def get_config():\n  return {'data': {'sed': 1}}\n",
      r"^data\.sed is not a field; did you mean 'seed'\?",
    ),
    (
      "def get_config():\n  return {'schedule': '1 2', 'generator': {'depth': 3}}\n",
      r"^fields were renamed: config\.schedule is now config\.tokenizer\.schedule; "
      r"config\.generator\.depth is now config\.generator\.num_layers$",
    ),
    (
      "from videoar_jax.experiment.defaults import default_config\n"
      "def get_config():\n  default_config({}).seed = 'one'\n",
      r"config\.py, line 3: TypeError: .*seed",
    ),
  ],
)
def test_what_is_wrong_with_a_file_is_one_error(tmp_path, text, message):
  (tmp_path / "config.py").write_text(text)
  before = list(sys.path)
  with pytest.raises(ValueError, match=message):
    read_config(str(tmp_path / "config.py"))
  assert sys.path == before


def test_a_file_that_is_not_there_is_named():
  with pytest.raises(ValueError, match=r"^--config=none\.py does not exist"):
    load_config_file("none.py")


def test_the_argument_reaches_the_file(tmp_path):
  path = tmp_path / "config.py"
  path.write_text("def get_config(arg='3'):\n  return {'seed': int(arg)}\n")
  assert read_config(str(path)).seed == 3 and read_config(f"{path}:4").seed == 4
  assert read_config(f"{path}:4", ["--config.seed=5"]).seed == 5


BUCKET, PROMPT = "gs://bucket/a", "--prompt=x"


@pytest.mark.parametrize(
  ("command", "flags", "flag"),
  [
    (sample, [f"--workdir={BUCKET}", PROMPT], "--workdir"),
    (sample, ["--workdir=run", PROMPT, f"--out={BUCKET}"], "--out"),
    (evaluate, [f"--workdir={BUCKET}", "--suite=generation"], "--workdir"),
    (evaluate, ["--workdir=run", "--suite=generation", f"--out={BUCKET}"], "--out"),
    (convert, ["weights", "--workdir=run", "--stage=I", f"--out={BUCKET}"], "--out"),
    (convert, ["weights", f"--workdir={BUCKET}", "--stage=I", "--out=a"], "--workdir"),
    (ablation, [f"--workdir={BUCKET}"], "--workdir"),
  ],
)
def test_object_storage_is_no_folder(tmp_path, monkeypatch, capsys, command, flags, flag):
  """A URL is refused before anything is read or written, with what to do instead."""
  monkeypatch.chdir(tmp_path)
  assert command.main(flags) == 2
  error = capsys.readouterr().err
  # A path may have lost a slash.
  assert re.match(rf"error: {flag}=gs://?bucket/a is a URL.*mount the bucket", error), error
  assert not list(tmp_path.iterdir())


def test_object_storage_is_no_workdir(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  with flagsaver.flagsaver():
    main.parse_flags(["main", f"--workdir={BUCKET}", f"--config={ROOT / 'configs/quickstart.py'}"])
    assert main.main(["main"]) == 2
  assert f"error: --workdir={BUCKET} is a URL" in capsys.readouterr().err
  with pytest.raises(ValueError, match="is a URL"):
    load_model("s3://bucket/a")
  assert not list(tmp_path.iterdir())


def test_names_that_are_not_utf_8_are_printed_with_escapes(monkeypatch):
  printed = io.BytesIO()
  monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, "utf-8", write_through=True))
  assert print_result(lambda: "caf\udce9.mp4", uses_jax=False) == 0
  assert printed.getvalue() == b"caf\\udce9.mp4\n"


@pytest.mark.parametrize(
  ("path", "is_there"),
  [
    ("gs://bucket/run", True),
    (pathlib.Path("gs://bucket/run"), True),
    ("simplecache::s3://bucket/run", True),
    ("runs/gs://a", False),
    ("take::1", False),
    ("C:/runs", False),
  ],
)
def test_urls_are_told_from_folders(path, is_there):
  assert is_url(path) == is_there
  with pytest.raises(ValueError, match="is a URL") if is_there else contextlib.nullcontext():
    check_local(path, "--workdir")
