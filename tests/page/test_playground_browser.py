"""The page in a real browser: as a person sees it. Needs gradio, playwright and Chromium."""

import json
import os
import shutil
import subprocess
import sys
import time

import av
import pytest
from commands import REPOSITORY, environment
from drawn_model import SCALES
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WAIT_MS = 60_000
GROWING, FINISHED = '.stage[data-state="growing"]', '.stage[data-state="finished"]'

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
  pytest.importorskip("gradio", reason="pip install 'videoar_jax[playground]'")
  playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
  if CHROMIUM is None:
    pytest.skip("there is no chromium; on Debian: apt-get install chromium")
  with playwright.sync_playwright() as tools:
    # The sandbox needs rights that containers lack; the page is our own.
    found = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    yield found
    found.close()


@pytest.fixture
def visit(browser):
  """Returns a function that opens a page as a new visitor; errors of its scripts fail the test."""
  errors, contexts = [], []

  def open_page(address):
    contexts.append(browser.new_context(viewport={"width": 1320, "height": 1000}))
    page = contexts[-1].new_page()
    page.set_default_timeout(WAIT_MS)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#generate")
    return page

  yield open_page
  for context in contexts:
    context.close()
  assert not errors


class Served:
  """A process that serves a page."""

  def __init__(self, command, **settings):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    self.process = subprocess.Popen(command, cwd=REPOSITORY, **pipes, **settings)
    lines = list(iter(self._line, ""))
    assert self.process.poll() is None, "".join(lines)

  def _line(self):
    line = self.process.stdout.readline()
    if line.startswith("http://"):
      self.address = line.split()[0]
      return ""
    return line

  def end(self):
    self.process.terminate()
    self.process.communicate(timeout=30)


@pytest.fixture(scope="module")
def drawn_page(browser, tmp_path_factory):
  """Yields the address of a page whose model draws slowly, and the file of its steps."""
  folder = tmp_path_factory.mktemp("drawn")
  paths = os.pathsep.join(str(REPOSITORY / path) for path in ("", "tests/helpers"))
  program = REPOSITORY / "tests" / "helpers" / "serve_drawn.py"
  served = Served([sys.executable, program, folder], env=environment() | {"PYTHONPATH": paths})
  yield served.address, folder / "steps"
  served.end()


@pytest.fixture
def drawn(drawn_page):
  """Returns the address of that page, and a function that reads the steps since now."""
  address, file = drawn_page
  before = len(file.read_text().splitlines())
  return address, lambda: [json.loads(line) for line in file.read_text().splitlines()[before:]]


def download(page, number, path):
  """Saves a clip by its button; returns its name and frames."""
  with page.expect_download() as waiting:
    page.click(f".card .save >> nth={number}")
  waiting.value.save_as(path)
  with av.open(str(path)) as container:
    frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
  return waiting.value.suggested_filename, frames


@pytest.fixture
def made(trained):
  """Yields the address of a page with a trained model: the command, as users start it."""
  command = [sys.executable, "-m", "videoar_jax.playground", f"--workdir={trained}", "--port=0"]
  served = Served(command, env=environment())
  yield served.address
  served.end()


def test_playground_from_prompt_to_file_and_screenshot(browser, made, visit, tmp_path):
  page = visit(made)
  page.fill("#prompt textarea", "a small green star moves up")
  page.click("#generate")
  partial = page.wait_for_selector(f"{GROWING} .card img")
  assert partial.get_attribute("src").startswith("data:image/")
  page.wait_for_selector(FINISHED)
  name, frames = download(page, 1, tmp_path / "clip.mp4")
  assert name == "a_small_green_star_moves_up_0_1.mp4"
  assert len(frames) == 5 and frames[0].shape == (256, 256, 3)
  page.wait_for_function(
    "[...document.querySelectorAll('.card video')].every(v => v.loop && v.currentTime > 0)"
  )
  page.click("#longer")
  page.wait_for_function("document.querySelector('.status .step')?.innerText == '7 frames'")
  _, longer = download(page, 1, tmp_path / "longer.mp4")
  assert len(longer) == 7
  page.screenshot(path=tmp_path / "page.png")
  assert Image.open(tmp_path / "page.png").size == (1320, 1000)
  page.click("role=tab[name='The run']")
  page.wait_for_function("document.querySelector('img.curves')?.naturalWidth > 500")
  assert "Reconstruction" in page.inner_text("#report")


def test_playground_menus_write_the_prompt_and_errors_stand_beside_their_field(
  drawn, visit, tmp_path
):
  address, steps = drawn
  page = visit(address)
  page.click("#colour_0 input")
  page.click("role=option[name='cyan']")
  page.wait_for_function("document.querySelector('#prompt textarea').value.includes('cyan')")
  page.fill("#prompt textarea", "very " * 60)
  page.click("#generate")
  page.wait_for_selector("#prompt >> text=Too long: the model reads the prompt as far as")
  page.fill("#prompt textarea", "a star")
  page.click("#sampling button >> nth=0")
  page.fill("#top_p input", "7")
  page.click("#generate")
  page.wait_for_selector("#top_p >> text=must be in (0, 1]")
  (tmp_path / "none.png").write_text("no picture")
  page.set_input_files("input[type=file]", tmp_path / "none.png")
  page.wait_for_selector("#start >> text=none.png cannot be read as an image")
  assert not steps()
  Image.new("RGB", (40, 20), (9, 99, 199)).save(tmp_path / "good.png")
  page.set_input_files("input[type=file]", tmp_path / "good.png")
  page.wait_for_selector("#start img")
  page.fill("#top_p input", "0.9")
  page.click("#generate")
  page.wait_for_selector(FINISHED)
  facts = {"prompt": "a star", "top_p": 0.9, "pixel": [9, 99, 199]}
  assert steps() == [facts] * 3 * SCALES


def test_playground_cancelled_and_left_clips_are_not_decoded_on(drawn, visit):
  address, steps = drawn
  page = visit(address)
  page.click("#generate")
  page.wait_for_selector(GROWING)
  page.click("#cancel")
  page.wait_for_selector(".stage[data-state='stopped']")
  assert "cancelled at frame" in page.inner_text(".status .step")
  done = len(steps())
  time.sleep(1.5)
  assert len(steps()) <= done + 1 < 3 * SCALES
  other = visit(address)
  other.click("#generate")
  other.wait_for_selector(GROWING)
  other.context.close()
  time.sleep(1.5)
  left = len(steps())
  time.sleep(1.5)
  assert len(steps()) == left < done + 1 + 3 * SCALES
  page.click("#generate")
  page.wait_for_selector(FINISHED)  # Whoever comes next is served.


def test_playground_visitors_wait_their_turn_and_see_their_own_clips(drawn, visit, tmp_path):
  address, steps = drawn
  first, second = visit(address), visit(address)
  first.click("#generate")
  first.wait_for_selector(GROWING)
  second.fill("#prompt textarea", "a star")
  second.fill("#seed input", "9")
  second.click("#generate")
  second.wait_for_selector("text=Waiting for 1 before you")
  first.wait_for_selector(FINISHED)
  second.wait_for_selector(FINISHED)
  asked = [step["prompt"] for step in steps()]  # One after the other.
  assert asked == [asked[0]] * 3 * SCALES + ["a star"] * 3 * SCALES and asked[0] != "a star"
  assert first.inner_text(".status .prompt") != second.inner_text(".status .prompt") == "a star"
  sources = [
    set(page.eval_on_selector_all(".card video", "all => all.map(v => v.src)"))
    for page in (first, second)
  ]
  assert len(sources[0]) == len(sources[1]) == 4 and not sources[0] & sources[1]
  # The seed is in the blue of a drawn frame.
  blue = [
    download(page, 0, tmp_path / f"{i}.mp4")[1][-1][..., 2].mean()
    for i, page in enumerate((first, second))
  ]
  assert blue[1] - blue[0] == pytest.approx(9, abs=4)
