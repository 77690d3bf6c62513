"""The command line from clips to clips: training, resuming, sampling, bad input."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from commands import (
  FOUR_WAYS,
  REPOSITORY,
  TINY_TOKENIZER,
  assert_same_losses,
  command,
  environment,
  losses,
  run,
  start_two,
  wait_for,
)


def test_workdir_holds_what_a_run_decided(trained):
  for name in ("config.json", "run.json", "log.txt", "report.md", "scores.json"):
    assert (trained / name).stat().st_size > 0, name
  facts = json.loads((trained / "run.json").read_text())
  assert facts["parameters"]["generator"] > facts["parameters"]["tokenizer"] > 1000
  parts = facts["parameters_by_module"]["tokenizer"]
  assert parts.keys() == {"encoder", "decoder"}
  assert sum(parts.values()) == facts["parameters"]["tokenizer"]
  assert "encoder/conv_in/kernel" in (trained / "log.txt").read_text()
  assert facts["packages"]["jax"]
  for stage in ("images", "tokenizer", "generator"):
    assert list((trained / stage / "tensorboard").glob("events*"))
  assert set(losses(trained)["generator"]) == set(range(1, 7))
  for stage, last in (("images", 4), ("tokenizer", 6), ("generator", 6)):
    found = {step for step, record in losses(trained)[stage].items() if "eval/loss" in record}
    assert found == {3, last}


def test_second_run_trains_nothing(trained):
  before = (trained / "generator" / "metrics.jsonl").read_bytes()
  done = run(command(trained))
  assert done.returncode == 0 and done.stdout.count("already finished") == 3
  assert (trained / "generator" / "metrics.jsonl").read_bytes() == before


# What takes long to import, and samples do not need.
HEAVY = (
  *("orbax", "grain", "matplotlib", "pyarrow", "tensorboardX", "tensorstore", "array_record"),
  *("tensorflow", "tensorflow_datasets", "torch", "transformers", "scipy", "clu.metrics"),
)


def test_samples_need_neither_checkpoints_nor_what_training_needs(trained, tmp_path):
  """A run ends with its weights in one file, which is all that `sample` reads."""
  out = f"--out={tmp_path / 'out'}"
  program = (
    "import sys\n"
    "from videoar_jax import sample\n"
    f"status = sample.main(['--workdir={trained}', '--prompt=a', '--num_samples=1', '{out}'])\n"
    f"print('imported:', sorted(set(sys.modules) & set({HEAVY!r})), status)\n"
  )
  done = run([sys.executable, "-c", program])
  assert done.stdout.splitlines()[-1] == "imported: [] 0", done.stderr[-3000:]
  assert "reading the checkpoint" not in done.stderr
  assert (trained / "model.safetensors").is_file() and list((tmp_path / "out").glob("*.mp4"))


def test_killed_run_ends_with_the_same_numbers(trained, tmp_path):
  """SIGKILL in every stage and one SIGTERM; the run resumes to the same losses, bit for bit."""
  workdir = tmp_path / "killed"
  kills = [("images", 3, signal.SIGKILL), ("tokenizer", 3, signal.SIGKILL)]
  kills += [("tokenizer", 5, signal.SIGTERM), ("generator", 3, signal.SIGKILL)]
  for stage, at_step, kind in kills:
    process = subprocess.Popen(
      command(workdir),
      cwd=REPOSITORY,
      env=environment(),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    # The first checkpoint of a stage is a sure sign that the stage has come that far.
    wanted = workdir / stage / "checkpoints" / str(at_step - at_step % 2)
    deadline = time.time() + 300
    while not wanted.is_dir() and process.poll() is None and time.time() < deadline:
      time.sleep(0.002)
    process.send_signal(kind)
    output, _ = process.communicate(timeout=300)
    if kind == signal.SIGTERM and "resumes from there" in output:
      assert process.returncode == 143
  done = run(command(workdir))
  assert done.returncode == 0, done.stderr[-3000:]
  assert losses(workdir) == losses(trained)


def test_two_devices_equal_one(trained, tmp_path):
  """Batch, parameters and optimizer sharded over two devices: the same losses to 1e-5.

  One stage has its own mesh, onto which it loads the previous stage's parameters; and back.
  """
  meshes = ("--config.mesh.data=1", "--config.mesh.fsdp=2")
  meshes += ("--config.stage.tokenizer.mesh.fsdp=1", "--config.stage.tokenizer.mesh.data=2")
  done = run(command(tmp_path, *meshes), num_devices=2)
  assert done.returncode == 0, done.stderr[-3000:]
  meshes = json.loads((tmp_path / "run.json").read_text())["meshes"]
  assert [meshes[stage]["fsdp"] for stage in ("images", "tokenizer", "generator")] == [2, 1, 2]
  assert_same_losses(tmp_path, trained, ("loss", "eval/loss"))


@pytest.mark.slow
def test_two_processes_that_are_stopped_and_killed_end_as_one_that_is_not(trained, tmp_path):
  """SIGTERM to one process in the second stage stops both; SIGKILL of one ends the other."""
  workdir = tmp_path / "run"
  # So that the only checkpoint is where it stopped.
  flags = command(workdir, *FOUR_WAYS, "--config.stage.tokenizer.loop.save_every=1000")
  processes = start_two(flags)
  checkpoints = workdir / "tokenizer" / "checkpoints"
  wait_for(checkpoints, processes)
  processes[1].send_signal(signal.SIGTERM)
  outputs = [process.communicate(timeout=300)[0] for process in processes]
  assert [process.returncode for process in processes] == [143, 143], outputs
  assert "resumes from there" in outputs[0]
  [step] = (int(path.name) for path in checkpoints.iterdir() if path.name.isdigit())
  assert step < 4, "the agreement counts this process's calls, not the steps of the stage"

  processes = start_two(flags)
  wait_for(workdir / "generator" / "checkpoints" / "2", processes)
  processes[1].kill()
  began = time.monotonic()
  output, _ = processes[0].communicate(timeout=100)
  assert processes[0].returncode in (134, -signal.SIGABRT), output[-3000:]
  assert time.monotonic() - began < 90 and output
  processes[1].communicate()

  # One process alone, on another mesh.
  done = run(command(workdir, "--config.mesh.data=1", "--config.mesh.fsdp=2"), num_devices=2)
  assert done.returncode == 0, done.stderr[-3000:]
  assert "config changed: config.mesh.fsdp: 4 -> 2" in done.stdout
  assert_same_losses(workdir, trained)


@pytest.mark.slow
def test_two_processes_equal_one(trained, tmp_path):
  """Two processes with two devices each train to the same losses; the second writes nothing."""
  processes = start_two(command(tmp_path / "run", *FOUR_WAYS))
  outputs = [process.communicate(timeout=1200)[0] for process in processes]
  assert [process.returncode for process in processes] == [0, 0], outputs
  assert "report:" in outputs[0] and "stage generator" not in outputs[1]
  assert json.loads((tmp_path / "run" / "run.json").read_text())["processes"] == 2
  assert_same_losses(tmp_path / "run", trained, ("loss", "eval/loss"))


def test_evaluation_of_a_trained_tokenizer(trained, tmp_path):
  evaluate = [sys.executable, "-m", "videoar_jax.evaluate", "--suite=reconstruction"]
  done = run([*evaluate, f"--workdir={trained}", "--num_clips=4", f"--out={tmp_path / 'out'}"])
  assert done.returncode == 0, done.stderr[-3000:]
  result = json.loads((tmp_path / "out" / "reconstruction.json").read_text())
  # The same clips as in the report of the run.
  report = json.loads((trained / "scores.json").read_text())["reconstruction"]["psnr"]
  assert result["psnr"]["mean"] == pytest.approx(report["mean"], abs=1e-3)
  assert result["psnr"]["worst"] == pytest.approx(report["min"], abs=1e-3)
  assert [scale["size"] for scale in result["codebook_usage"]["scales"]] == ["1x1", "2x2", "4x4"]


def test_checkpoint_of_another_size_is_named(trained, tmp_path):
  import videoar_jax

  workdir = shutil.copytree(trained, tmp_path / "other")
  config = json.loads((workdir / "config.json").read_text())
  config["generator"]["mlp_dim"] += 8
  (workdir / "config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError, match=r"'generator' is of another network than .*config\.json"):
    videoar_jax.load_model(workdir)


def test_python_interface(trained):
  import videoar_jax

  tokenizer = videoar_jax.load_tokenizer(trained)
  video = np.random.default_rng(0).uniform(-1, 1, (2, 5, 16, 16, 3)).astype(np.float32)
  latents = tokenizer.encode(video)
  assert latents.shape == (2, 3, 4, 4, 8)
  codes = tokenizer.quantize(latents)
  assert [bits.shape for bits in codes.bits] == [(2, 3, n, n, 8) for n in (1, 2, 4)]
  assert all(bits.dtype == np.uint8 for bits in codes.bits)
  decoded = tokenizer.decode(codes.quantized)
  assert decoded.shape == video.shape and abs(np.asarray(decoded)).max() <= 1
  assert len(tokenizer.quantize(latents, ((2, 2), (4, 4))).bits) == 2
  checkpoint = videoar_jax.load_tokenizer(trained / "tokenizer" / "checkpoints" / "6")
  np.testing.assert_array_equal(checkpoint.encode(video), latents)
  earlier = videoar_jax.load_tokenizer(trained / "tokenizer" / "checkpoints" / "4")
  assert np.abs(np.asarray(earlier.encode(video)) - latents).max() > 0

  model = videoar_jax.load_model(trained)
  prompts = ["a large red circle moves left", "a small blue star moves up"]
  clips = model.sample(prompts=prompts, num_frames=5, seed=0)
  assert clips.shape == (2, 5, 16, 16, 3) and clips.dtype == np.uint8
  np.testing.assert_array_equal(model.sample(prompts, seed=0), clips)
  assert (model.sample(prompts, seed=1) != clips).any()
  np.testing.assert_array_equal(model.sample(prompts[:1], seed=0)[0], clips[0])
  assert model.sample(prompts[:1], num_frames=9, window=3).shape[1] == 9
  from videoar_jax.parallel.mesh import MeshConfig

  # Over two devices, each reads its half of the heads.
  split = videoar_jax.load_model(trained, mesh=MeshConfig(data=1, tensor=2))
  kernel = split.generator.blocks.attention.query.kernel[...]
  assert kernel.addressable_shards[0].data.shape[-1] == kernel.shape[-1] // 2
  np.testing.assert_array_equal(split.sample(prompts, seed=0), clips)


@pytest.mark.slow  # Takes half a minute.
@pytest.mark.parametrize("suite", ["generation", "reconstruction"])
def test_two_processes_evaluate_together(trained, tmp_path, suite):
  """With other batches, and over four devices in two processes: the numbers of one device."""
  main = [sys.executable, "-m", "videoar_jax.evaluate", f"--workdir={trained}", f"--suite={suite}"]
  main += ["--num_clips=6", *(["--num_long_clips=2"] if suite == "generation" else [])]
  done = run([*main, f"--out={tmp_path / 'one'}"])
  assert done.returncode == 0, done.stderr[-3000:]
  processes = start_two(
    [*main, f"--out={tmp_path / 'two'}", "--mesh=fsdp:4", "--batch_size=4", "--distributed"]
  )
  outputs = [process.communicate(timeout=300)[0] for process in processes]
  assert [process.returncode for process in processes] == [0, 0], outputs
  assert str(tmp_path / "two") in outputs[0] and str(tmp_path / "two") not in outputs[1]
  one, two = (
    json.loads((tmp_path / name / f"{suite}.json").read_text()) for name in ("one", "two")
  )
  if suite == "reconstruction":
    assert two["psnr"] == pytest.approx(one["psnr"], abs=1e-3)
    assert two["codebook_usage"]["flipping"] == one["codebook_usage"]["flipping"]
  else:
    assert two["teacher_forced"] == pytest.approx(one["teacher_forced"], abs=1e-4)
    assert two["prompts"] == one["prompts"]


def test_python_interface_names_bad_input(trained, without_type_checks):
  import videoar_jax

  tokenizer, video = videoar_jax.load_tokenizer(trained), np.zeros((2, 5, 16, 16, 3), np.float32)
  latents = tokenizer.encode(video)
  with pytest.raises(ValueError, match="schedule ends at"):
    tokenizer.quantize(latents, ((1, 1), (2, 2)))
  with pytest.raises(ValueError, match=r"1 \+ 2 k"):
    tokenizer.encode(video[:, :4])
  with pytest.raises(ValueError, match="multiple of the tokenizer's stride"):
    tokenizer.encode(video[:, :, :15])
  with pytest.raises(ValueError, match="floats in"):
    tokenizer.encode(video.astype(np.uint8))
  model = videoar_jax.load_model(trained)
  prompts = ["a large red circle moves left", "a small blue star moves up"]
  for bad, match in (
    ({"prompts": ["x " * 200]}, "200 words"),
    ({"prompts": "one"}, "list"),
    ({"prompts": prompts, "num_frames": 4}, r"1 \+ 2 k"),
    ({"prompts": prompts, "temperature": -1}, "temperature"),
    ({"prompts": prompts, "top_p": 0}, "top_p"),
    ({"prompts": prompts, "guidance": "much"}, "guidance"),
  ):
    with pytest.raises(ValueError, match=match):
      model.sample(**bad)
  with pytest.raises(FileNotFoundError, match=r"config\.json"):
    videoar_jax.load_model(trained.parent)


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--config.data.num_frames=8"], "1 + 2 k"),
    (["--config.data.resolution=(16,18)"], "multiple of the tokenizer's stride"),
    (
      ["--config.generator.num_layer=3"],
      "generator.num_layer is not a field; did you mean 'num_layers'?",
    ),
    (["--config.dat.seed=1"], "config.dat is not a field; did you mean 'data'?"),
    (["--config.data.source=webcam"], "webcam"),
    (["--config.tokenizer.schedule=1 2"], "schedule ends at"),
    (["--config.generator.num_kv_heads=3"], "num_kv_heads"),
    (["--config.mesh.data=3"], "devices"),
    (["--config.stage.generator.loss.corruption.p_max=2.0"], "p_max"),
    (["--config.sampling.guidance=much"], "guidance"),
  ],
)
def test_bad_settings_are_named_and_write_nothing(tmp_path, flags, message):
  done = run(command(tmp_path / "run", *flags))
  assert done.returncode != 0 and message in done.stderr, done.stderr[-1000:]
  assert not (tmp_path / "run").exists()


def test_workdir_of_another_config_is_refused(trained):
  before = (trained / "config.json").read_bytes()
  done = run(command(trained, "--config.seed=5"))
  assert done.returncode == 2
  assert "config.seed: 0 -> 5" in done.stderr
  assert (trained / "config.json").read_bytes() == before


@pytest.mark.parametrize(
  ("config", "flags", "message"),
  [
    ("configs/quickstart.py:sizes=tiny", (), "known, with defaults"),
    ("configs/nope.py", (), "--config=configs/nope.py does not exist"),
    ("configs/tokenizer_ucf101.py", (), "data= is missing"),
    ("configs/quickstart.py", ("--config.seed=abc",), "--config.seed=abc: invalid literal"),
    ("configs/quickstart.py", ("--config.seed.x=1",), "config.seed is a value and has no fields"),
    (
      "configs/quickstart.py",
      ("--config.stage.genrator.loop.keep_period=3",),
      "config.stage.genrator is not a field; did you mean 'generator'?",
    ),
  ],
)
def test_bad_config_flag_takes_one_line(tmp_path, config, flags, message):
  done = run(command(tmp_path / "run", *flags, config=config))
  assert done.returncode == 2 and message in done.stderr, done.stderr[-1000:]
  assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_empty_folder(tmp_path):
  (tmp_path / "clips").mkdir()
  config = f"configs/quickstart.py:size=tiny,data={tmp_path / 'clips'}"
  done = run(command(tmp_path / "run", config=config))
  assert done.returncode == 2 and "clips" in done.stderr and "mp4" in done.stderr
  assert not (tmp_path / "run").exists()


ADVERSARIAL = [
  *TINY_TOKENIZER,
  "--config.stage.tokenizer.loop.num_steps=8",
  "--config.stage.tokenizer.loop.save_every=3",
  "--config.stage.tokenizer.mixture.images.batch_size=4",
  "--config.stage.tokenizer.loss.adversarial.start_step=2",
  "--config.stage.tokenizer.loss.adversarial.discriminator.patch_size=2",
]


def adversarial_command(workdir, *extra):
  main = [sys.executable, "-m", "videoar_jax.main", f"--workdir={workdir}"]
  config = "configs/tokenizer_ucf101.py:variant=quick,lpips=0"
  return [*main, f"--config={config}", *ADVERSARIAL, *extra]


@pytest.mark.slow  # What must always hold of it is in train/test_adversary.py.
def test_adversarial_training_on_images_and_clips_resumes(tmp_path):
  """One step in five is on images; an interrupted run ends like an uninterrupted one."""

  def numbers(workdir):
    lines = (workdir / "tokenizer" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [{k: v for k, v in record.items() if not k.endswith("_per_s")} for record in records]

  whole, cut = tmp_path / "whole", tmp_path / "cut"
  done = run(adversarial_command(whole))
  assert done.returncode == 0, done.stderr[-3000:]
  records = numbers(whole)
  assert [record["step"] for record in records] == list(range(1, 9))
  assert [record["adversarial_weight"] > 0 for record in records] == [False] * 2 + [True] * 6
  assert all(np.isfinite(list(record.values())).all() for record in records)
  # Stopped in the middle of a step; the same command goes on from the step that was saved.
  started = subprocess.Popen(
    adversarial_command(cut), cwd=REPOSITORY, env=environment(), stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )  # fmt: skip
  deadline = time.monotonic() + 300
  while not (cut / "tokenizer" / "checkpoints" / "3").is_dir() and time.monotonic() < deadline:
    time.sleep(0.05)
  started.kill()
  started.wait()
  done = run(adversarial_command(cut))
  assert done.returncode == 0, done.stderr[-3000:]
  assert numbers(cut) == records


def test_a_size_that_the_discriminator_cannot_halve_is_named(tmp_path):
  levels = "--config.stage.tokenizer.loss.adversarial.discriminator.patch_size=3"
  done = run(adversarial_command(tmp_path / "new", levels))
  assert done.returncode == 2 and "the discriminator's stride" in done.stderr
  assert not (tmp_path / "new").exists()
