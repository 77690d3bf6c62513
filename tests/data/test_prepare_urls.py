"""Preparing from folders at URLs and patterns, and to URLs; faults of storage and of processes."""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys

import fsspec
import pytest
from commands import REPOSITORY
from media_files import write_image, write_video

from videoar_jax import prepare as command
from videoar_jax.data import clip_encoding, prepare
from videoar_jax.data.output_folder import OutputFolder
from videoar_jax.data.pipeline import DataConfig, make_source
from videoar_jax.data.sources import remote
from videoar_jax.data.sources.index import CANNOT_BE_FETCHED

FLAGS = ("--clip_s=1", "--min_s=1", "--files_per_shard=2", "--num_processes=1")
OUT = "memory://bucket/shards"


@pytest.fixture(scope="module")
def media(tmp_path_factory):
  folder = tmp_path_factory.mktemp("media") / "media"
  write_video(folder / "a" / "0.mp4", 30, 15, value=0)
  write_video(folder / "a" / "1.mp4", 15, 15, value=1)
  write_image(folder / "b" / "2.png", 100)
  write_video(folder / "b" / "3.MP4", 15, 15, value=3)
  (folder / "b" / "4.mp4").write_text("no video")
  (folder / "captions.jsonl").write_text('{"file": "a/1.mp4", "caption": "one"}\n')
  return folder


@pytest.fixture(scope="module")
def expected(media, tmp_path_factory):
  return run(media, tmp_path_factory.mktemp("out"))


@pytest.fixture
def bucket(media, tmp_path, monkeypatch):
  monkeypatch.setenv("VIDEOAR_JAX_DATA", str(tmp_path / "cache"))
  files = fsspec.filesystem("memory")
  for path in media.rglob("*"):
    if path.is_file():
      files.pipe(f"/bucket/media/{path.relative_to(media)}", path.read_bytes())
  yield files
  files.rm("/bucket", recursive=True)


def run(path, out, *flags):
  """Prepares; returns the bytes of each file in the output folder."""
  assert command.main([str(path), f"--out={out}", *FLAGS, *flags]) == 0
  return read(out)


def read(out):
  folder = OutputFolder(out)
  return {name: folder.read_range(name, 0, size) for name, size in folder.sizes().items()}


def keys(found):
  notes = [found[name] for name in sorted(found) if name.startswith("clips-") and "json" in name]
  return [key for note in notes for key in json.loads(note)["keys"]]


def test_the_same_shards_from_and_to_everywhere(media, bucket, tmp_path, expected):
  assert keys(expected) == ["a/0.mp4#0", "a/0.mp4#1", "a/1.mp4#0", "b/2.png#0", "b/3.MP4#0"]
  for number, place in enumerate((media, "memory://bucket/media", "memory://bucket/media/")):
    assert run(place, f"{OUT}/{number}") == expected
  assert run("memory://bucket/media", tmp_path / "out") == expected
  # Patterns: of the same files, local and not.
  assert run("memory://bucket/media/*/*", OUT + "/pattern") == expected
  assert run(f"{media}/**", OUT + "/local_pattern") == expected


def test_shards_at_a_url_are_trained_on(bucket):
  run("memory://bucket/media/?/*.mp4", OUT)
  config = DataConfig(source="shards", path=OUT, num_frames=5, resolution=(32, 64))
  source = make_source(config, "train")
  assert [file.partition("/")[2] for file in source.files] == [
    *("a/0.mp4#0", "a/0.mp4#1", "a/1.mp4#0"),
  ]
  assert source[2]["caption"] == "one"


def test_a_pattern_selects_files(bucket):
  """Captions of other files are no mistakes; the folder before the wildcard is the root."""
  found = run("memory://bucket/media/[b]/*", OUT)
  assert keys(found) == ["b/2.png#0", "b/3.MP4#0"]
  assert keys(run("memory://bucket/media/b/?.*", OUT + "/b")) == ["2.png#0", "3.MP4#0"]


def test_a_folder_may_have_wildcards_in_its_name(media, tmp_path, expected):
  os.symlink(media, tmp_path / "[media]*")
  assert run(tmp_path / "[media]*", tmp_path / "out") == expected


def test_an_index_at_a_url(bucket):
  entries = [{"path": f"{name}.mp4", "caption": name, "score": i} for i, name in enumerate("01")]
  text = "".join(json.dumps(entry) + "\n" for entry in entries)
  bucket.pipe("/bucket/media/a/index.jsonl", text.encode())
  found = run("memory://bucket/media/a/index.jsonl", OUT, "--filter=score > 0")
  assert keys(found) == ["1.mp4#0"]


def test_a_failed_upload_leaves_whole_shards_and_resumes(bucket, monkeypatch, capsys, expected):
  put, uploads = type(bucket).put_file, []

  def upload(self, source, name, **options):
    if "clips-00001" in name and len(uploads) == 3:
      raise ConnectionError("gone")
    uploads.append(name.rpartition("/")[2])
    return put(self, source, name, **options)

  monkeypatch.setattr(type(bucket), "put_file", upload)
  arguments = ["memory://bucket/media", f"--out={OUT}", *FLAGS]
  assert command.main(arguments) == 2
  assert f"{OUT} cannot be used (ConnectionError: gone)" in capsys.readouterr().err
  first = ["prepared.json", "clips-00000-of-00003.array_record", "clips-00000-of-00003.json"]
  assert uploads == first and read(OUT) == {name: expected[name] for name in first}
  uploads.append("")
  assert command.main(arguments) == 0 and read(OUT) == expected
  assert not set(first) & set(uploads[4:])


def test_a_shard_that_is_done_is_not_written_again(media, tmp_path):
  settings = prepare.Settings(clip_s=1, min_s=1)
  job = ("clips-0.array_record", [("a/1.mp4", {"caption": "x"})])
  arguments = (str(media), str(tmp_path), settings, job)
  assert prepare.write_shard(*arguments) == 1
  times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
  assert prepare.write_shard(*arguments) == 1 and len(times) == 2
  assert times == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_one_file_that_cannot_be_fetched_is_dropped_and_all_stop(media, tmp_path, monkeypatch):
  """If none can be fetched, credentials or the network are at fault, and not the samples."""
  missing = {"memory://bucket/0.mp4", "memory://bucket/1.mp4"}

  def read(url):
    if url not in missing:
      return (media / "a" / url.rpartition("/")[2]).read_bytes()
    with remote.errors(url):
      raise PermissionError("expired")

  monkeypatch.setattr(remote, "read", read)
  job = ("x.array_record", [(f"{i}.mp4", {"caption": "x"}) for i in range(2)])
  arguments = ("memory://bucket", str(tmp_path), prepare.Settings(clip_s=1, min_s=1), job)
  with pytest.raises(ValueError, match=r"x.array_record: none of 2 files can be fetched.*0.mp4"):
    prepare.write_shard(*arguments)
  assert not list(tmp_path.iterdir())
  missing.remove("memory://bucket/1.mp4")
  assert prepare.write_shard(*arguments) == 2
  note = json.loads((tmp_path / "x.json").read_text())
  assert note["keys"] == ["1.mp4#0"]
  assert note["dropped"] == [{"key": "0.mp4", "cause": CANNOT_BE_FETCHED}]


def test_what_nobody_foresaw_drops_one_file(media, tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(clip_encoding, "_encode_image", lambda *_: [][1])
  found = run(media, tmp_path)
  dropped = [json.loads(line) for line in found[prepare.DROPPED].splitlines()]
  assert [entry["key"] for entry in dropped] == ["b/2.png", "b/4.mp4"]
  assert dropped[0]["cause"] == "cannot be read (IndexError)"
  [record] = [record for record in caplog.records if record.exc_info]
  assert "b/2.png is dropped" in record.getMessage()


def test_names_that_are_not_utf_8(media, tmp_path):
  folder = tmp_path / "media"
  folder.mkdir()
  (folder / "0.mp4").write_bytes((media / "a" / "0.mp4").read_bytes())
  (folder / os.fsdecode(b"\xff\xe4.mp4")).write_text("no video")
  found = run(folder, tmp_path / "out")
  assert json.loads(found[prepare.DROPPED])["key"] == "\\udcff\\udce4.mp4"
  assert keys(found) == ["0.mp4#0", "0.mp4#1"]


def test_a_killed_process_is_named(tmp_path, without_type_checks):
  runner = prepare.local_runner(2)
  with pytest.raises(ValueError, match=r"process was killed.*the same command resumes"):
    list(runner(os._exit, [1, 1], OutputFolder(tmp_path)))


def test_processes_end_with_a_command_that_is_killed(tmp_path):
  program = (
    "import time\n"
    "from videoar_jax.data import prepare\n"
    "if __name__ == '__main__':\n"
    "  for _ in prepare.local_runner(2)(time.sleep, [0, 1000, 1000], None):\n"
    "    print('ready', flush=True)\n"
  )
  (tmp_path / "program.py").write_text(program)
  arguments = [sys.executable, str(tmp_path / "program.py")]
  environ = os.environ | {"PYTHONPATH": str(REPOSITORY)}
  ours, theirs = os.pipe()
  with subprocess.Popen(arguments, env=environ, stdout=theirs, start_new_session=True) as process:
    os.close(theirs)
    try:
      with os.fdopen(os.dup(ours), "rb") as lines:
        assert lines.readline() == b"ready\n"
      process.kill()
      # The pipe is at its end once no process holds its other side.
      assert select.select([ours], [], [], 60)[0] and not os.read(ours, 100)
    finally:
      os.close(ours)
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def test_workers_that_write_elsewhere_are_noticed(media, tmp_path):
  with pytest.raises(ValueError, match=r"out lacks 3 of 3 shards, such as clips-00000.*workers"):
    settings = prepare.Settings(files_per_shard=2)
    prepare.prepare(str(media), tmp_path / "out", settings, lambda write, jobs, out: [5])


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (["memory://nowhere", "--out=OUT"], "memory://nowhere"),
    (["memory://nowhere/*.mp4", "--out=OUT"], "nothing to prepare"),
    (["memory://*/x.mp4", "--out=OUT"], "name the bucket"),
    (["memory://bucket/media", "--out=OUT", "--filter=x > 1"], "--filter applies to an index"),
    (["MEDIA", "--out=nothing://x"], "nothing://x cannot be used"),
    (["MEDIA", "--out=OUT", "--runner=direct"], "--runner=direct needs Apache Beam: pip install"),
    (["MEDIA", "--out=OUT", "--runner=direct", "--num_processes=2"], "--num_processes is for"),
    (["MEDIA", "--out=OUT", "--runner=dataflow"], "--out=OUT is on this machine"),
    (["MEDIA", "--out=gs://x", "--runner=Dataflow"], "INPUT=MEDIA is on this machine"),
  ],
)
def test_bad_flags_are_named(flags, said, media, bucket, tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "apache_beam", None)
  monkeypatch.delitem(sys.modules, "videoar_jax.data.beam", raising=False)
  out = tmp_path / "out"

  def fill(text):
    return text.replace("OUT", str(out), 1).replace("MEDIA", str(media))

  assert command.main([fill(flag) for flag in flags]) == 2
  error = capsys.readouterr().err
  place = said.replace("OUT is", f"{out} is").replace("MEDIA", str(media))
  assert error.startswith("error: ") and error.count("\n") == 1 and place in error
  assert not out.exists()


def test_unknown_flags_are_no_flags_of_beam_without_beam(media, tmp_path, capsys):
  with pytest.raises(SystemExit) as stopped:
    command.main([str(media), f"--out={tmp_path / 'out'}", "--clip=3"])
  assert stopped.value.code == 2 and "unrecognized arguments: --clip=3" in capsys.readouterr().err


@pytest.mark.parametrize("pattern", ["", "/**", "/*/?.*"])
def test_patterns_and_urls_have_the_rules_of_folders(media, bucket, tmp_path, pattern):
  """Captions beside clips and in metadata; hidden files and output of this package are no data."""
  texts = {
    "a/0.txt": "beside",
    "a/metadata.jsonl": '{"file_name": "../b/2.png", "text": "listed"}\n',
    "b/.hidden/5.png": "no image",
    "shards/prepared.json": "{}",
    "shards/6.png": "no image",
    "shards/deep/7.png": "no image",
    "run/config.json": "{}",
    "run/run.json": "{}",
    "run/8.png": "no image",
  }
  folder = tmp_path / "media"
  shutil.copytree(media, folder)
  for name, text in texts.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    bucket.pipe(f"/bucket/media/{name}", text.encode())
  expected = {
    "a/0.mp4": "beside",
    "a/1.mp4": "one",
    "b/2.png": "listed",
    "b/3.MP4": "b",
    "b/4.mp4": "b",
  }
  for place in (folder, "memory://bucket/media"):
    root, found = prepare._list_input(f"{place}{pattern}", None)
    assert root == str(place)
    assert {file: facts["captions"] for file, facts in found} == {
      file: [caption] for file, caption in expected.items()
    }
  bucket.pipe("/bucket/media/b/metadata.jsonl", b'{"file_name": "gone.png"}\n{')
  with pytest.raises(ValueError, match=r"^memory://bucket/media/b/metadata\.jsonl, line 2"):
    prepare._list_input(f"memory://bucket/media{pattern}", None)
