#!/usr/bin/env bash
# VBench takes the ending of all clips from the first file that it lists in their folder.
#
# VBench looks for PROMPT-INDEX plus an ending, and takes that ending from the first name that
# os.listdir returns, whatever it is. One other file in the folder, such as notes or the .DS_Store of
# a desktop, may so hide all clips: each is reported as missing. The order of os.listdir is that of
# the file system, so the same folder may work elsewhere.
#
# Seen with vbench 0.1.5 on CPython 3.11, on 2026-11-29, with its imports of PyTorch stubbed: with
# notes.txt listed first, none of five clips is found; without it, all five.
#
# Exits non-zero if this changes.
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps vbench==0.1.5

"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import json
import os
import pathlib
import sys
import types

utils, distributed = types.ModuleType("vbench.utils"), types.ModuleType("vbench.distributed")
utils.load_json = lambda path: json.loads(pathlib.Path(path).read_text())
utils.save_json = lambda value, path: pathlib.Path(path).write_text(json.dumps(value))
utils.get_prompt_from_filename = utils.init_submodules = None
distributed.get_rank, distributed.print0 = (lambda: 0), (lambda text: None)
sys.modules |= {"vbench.utils": utils, "vbench.distributed": distributed}
import vbench

folder = pathlib.Path(sys.argv[1])
(folder / "videos").mkdir()
(folder / "info.json").write_text('[{"prompt_en": "a cat", "dimension": ["color"]}]')
names = [f"a cat-{i}.mp4" for i in range(5)]
for name in (*names, "notes.txt"):
  (folder / "videos" / name).touch()

found = {}
for first in ("a cat-0.mp4", "notes.txt"):
  # The order that a file system may have.
  os.listdir = lambda path, first=first: [first, *({*names, "notes.txt"} - {first})]
  check = vbench.VBench("cpu", str(folder / "info.json"), str(folder / "out"))
  path = check.build_full_info_json(str(folder / "videos"), "a", ["color"])
  found[first] = len(json.loads(pathlib.Path(path).read_text())[0]["video_list"])
print("clips found, by the file that is listed first:", found)
assert found == {"a cat-0.mp4": 5, "notes.txt": 0}, found
PYTHON
echo "as described"
