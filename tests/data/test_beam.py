"""Preparing on Apache Beam's direct runner: the same bytes as local processes, even if killed."""

import os
import signal
import subprocess
import sys
import time

import pytest
from commands import REPOSITORY
from media_files import write_video

from videoar_jax import prepare as command
from videoar_jax.data import prepare
from videoar_jax.data.output_folder import OutputFolder

pytest.importorskip("apache_beam", reason="Apache Beam is not installed: pip install -e '.[beam]'")

from videoar_jax.data import beam

FLAGS = ("--clip_s=1", "--min_s=0", "--files_per_shard=1")
TWO_WORKERS = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")


@pytest.fixture(scope="module")
def media(tmp_path_factory):
  folder = tmp_path_factory.mktemp("media")
  for i in range(8):
    write_video(folder / "ab"[i % 2] / f"{i}.mp4", 20 + i, 15, value=i)
  (folder / "b" / "bad.mp4").write_text("no video")
  return folder


@pytest.fixture(scope="module")
def expected(media, tmp_path_factory):
  out = tmp_path_factory.mktemp("out")
  assert command.main([str(media), f"--out={out}", "--num_processes=1", *FLAGS]) == 0
  return read(out)


def read(out):
  return {path.name: path.read_bytes() for path in out.iterdir()}


def start(media, out, *flags):
  arguments = [sys.executable, "-m", "videoar_jax.prepare", str(media), f"--out={out}", *FLAGS]
  environ = os.environ | {"PYTHONPATH": str(REPOSITORY)}
  return subprocess.Popen([*arguments, *flags], env=environ, start_new_session=True)


def test_shards_are_the_same_bytes_at_a_url_too(media, tmp_path, expected):
  for place in ((tmp_path / "url").as_uri(), str(tmp_path / "path")):
    assert command.main([str(media), f"--out={place}", "--runner=direct", *FLAGS]) == 0
  assert read(tmp_path / "url") == read(tmp_path / "path") == expected


@pytest.mark.parametrize("flags", [("--runner=direct", *TWO_WORKERS), ("--num_processes=2",)])
def test_a_killed_run_resumes_to_the_same_bytes(flags, media, tmp_path, expected):
  out = tmp_path / "out"
  out.mkdir()
  process = start(media, out, *flags)
  while not list(out.glob("clips-*.json")):
    assert process.poll() is None
    time.sleep(0.002)
  os.killpg(process.pid, signal.SIGKILL)  # The command and its workers.
  process.wait()
  left = {name: data for name, data in read(out).items() if name in expected}
  assert 2 <= len(left) < len(expected) - 1
  assert left == {name: expected[name] for name in left}
  done = {path: path.stat().st_mtime_ns for path in out.glob("clips-*.json")}
  assert start(media, out, *flags).wait() == 0
  assert read(out) == expected
  assert done == {path: path.stat().st_mtime_ns for path in done}


@pytest.mark.parametrize("num_bytes", [1, 100, 2**20])
def test_blocks_of_jobs_are_all_jobs(num_bytes, tmp_path, monkeypatch):
  monkeypatch.setattr(beam, "_BLOCK_BYTES", num_bytes)
  jobs = [(f"{i}", [("ä\udcff.mp4", {"captions": ["x" * i], "score": 0.1})]) for i in range(9)]
  blocks = beam._write_jobs(OutputFolder(tmp_path), jobs)
  assert len(blocks) == {1: 9, 100: 5, 2**20: 1}[num_bytes]
  found = [job for block in blocks for job in beam._read_jobs(str(tmp_path), block)]
  assert found == [(name, [list(file) for file in files]) for name, files in jobs]


def test_a_worker_that_fails_is_told_in_one_line(media, tmp_path, monkeypatch, capsys):
  def fail(*arguments):
    raise ValueError("the disk is full")

  monkeypatch.setattr(prepare, "write_shard", fail)
  arguments = [str(media), f"--out={tmp_path}", "--runner=FnApiRunner", *FLAGS]
  assert command.main(arguments) == 2
  error = capsys.readouterr().err.strip().splitlines()[-1]
  assert "error: --runner=FnApiRunner: the pipeline failed: the disk is full" in error


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (["--runner=nothing"], "Unexpected pipeline runner: nothing"),
    (["--runner=direct", "--clip=3"], "--clip is a flag neither of this command nor of Apache"),
    (["--runner=direct", "--direct_num_workers", "2"], "'2' is no flag; write flags of Beam as"),
  ],
)
def test_bad_flags_are_named(flags, said, media, tmp_path, capsys):
  assert command.main([str(media), f"--out={tmp_path / 'out'}", *flags]) == 2
  error = capsys.readouterr().err.strip().splitlines()[-1]
  assert error.startswith("error: ") and said in error and not (tmp_path / "out").exists()


def test_other_flags_go_to_servers_of_flink_and_spark():
  beam.beam_runner("FlinkRunner", ["--flink_master=localhost:8081", "--flag_of_the_server=1"])
