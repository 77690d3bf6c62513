"""Serves the page with a model that draws, as a process of its own; writes down its steps.

python serve_drawn.py FOLDER
"""

import json
import pathlib
import sys
import time

from drawn_model import make_studio, tiny_run

from videoar_jax.page import server
from videoar_jax.page.run_view import RunView

STEP_S = 0.4


def main(folder: str) -> None:
  """Serves until it is terminated; FOLDER/steps has a line for each step that was begun."""
  steps = pathlib.Path(folder) / "steps"
  steps.touch()

  def wait():
    prompts, _, _, asked = studio.model.calls[-1]
    image = asked.get("image")
    pixel = None if image is None else image[0, 0].tolist()
    facts = {"prompt": prompts[0], "top_p": asked["top_p"], "pixel": pixel}
    with steps.open("a") as file:
      file.write(json.dumps(facts) + "\n")
    time.sleep(STEP_S)

  studio = make_studio(wait)
  listener = server.open_port("127.0.0.1", 0)
  print(server.address(listener), flush=True)
  server.serve(studio, RunView(pathlib.Path(folder), tiny_run()), "a drawn model", listener)


if __name__ == "__main__":
  main(sys.argv[1])
