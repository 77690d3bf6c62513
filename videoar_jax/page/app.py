"""The page itself: its fields, what happens when they change, and the files that it serves."""

import random
import threading
from collections.abc import Iterator
from html import escape
from typing import Any

import fastapi
import gradio as gr

from videoar_jax.data.synthetic import captions
from videoar_jax.evals.scores import oracle_of
from videoar_jax.page.cards import cards, data_uri, notice
from videoar_jax.page.clip_files import ClipFiles
from videoar_jax.page.run_view import PICTURES, RunView
from videoar_jax.page.settings import FieldError
from videoar_jax.page.studio import (
  DEFAULT_CLIPS,
  MAX_CLIPS,
  Growth,
  Studio,
  Visitor,
  Wish,
  first_scene,
)
from videoar_jax.page.style import CSS

_WAITING = 64  # Requests in line; more are refused.
_EVERY_S = 4.0  # Between looks at a run that trains.
_UPLOAD = "20mb"
_HIDDEN = {"show_progress": "hidden", "api_visibility": "private"}
_AT_ONCE = _HIDDEN | {"concurrency_limit": None}
_EMPTY = (
  "What you ask for appears here, coarse at first and sharper with every scale, frame by frame."
)


def build(studio: Studio, view: RunView | None, title: str) -> fastapi.FastAPI:
  """Returns the web application.

  Args:
    studio: makes clips.
    view: the run of the second tab; None leaves the tab out.
    title: what stands beside the name: the model.
  """
  page = _Page(studio, view, title)
  app = fastapi.FastAPI(openapi_url=None)
  _add_files(app, page.files, view)
  font = ["ui-sans-serif", "system-ui", "Segoe UI", "Helvetica", "Arial", "sans-serif"]
  theme = gr.themes.Base(
    primary_hue=gr.themes.colors.blue,
    neutral_hue=gr.themes.colors.slate,
    font=font,
    font_mono=["ui-monospace", "monospace"],
  )
  return gr.mount_gradio_app(
    app,
    page.blocks,
    path="/",
    theme=theme,
    css=CSS,
    footer_links=[],
    max_file_size=_UPLOAD,
    show_error=True,
    ssr_mode=False,
  )


def _add_files(app: fastapi.FastAPI, files: ClipFiles, view: RunView | None) -> None:
  """Adds the addresses of clips and of a run's pictures."""

  @app.get("/clips/{name}.mp4")
  def clip(name: str):
    path = files.path(name)
    if path is None or not path.is_file():
      raise fastapi.HTTPException(404, "this clip is gone; make it once more")
    return fastapi.responses.FileResponse(path, media_type="video/mp4")

  if view is None:
    return

  @app.get("/run/curves.png")
  def curves():
    return fastapi.Response(view.curves_png(), media_type="image/png")

  @app.get("/run/samples/{name}.gif")
  def sample(name: str):
    gif = view.sample_gif(name)
    if gif is None:
      raise fastapi.HTTPException(404, "there is no such sample")
    return fastapi.Response(gif, media_type="image/gif")

  @app.get("/run/report/{name}")
  def picture(name: str):
    path = view.workdir / "report" / name
    if f"report/{name}" not in PICTURES or not path.is_file():
      raise fastapi.HTTPException(404, "there is no such picture")
    return fastapi.responses.FileResponse(path, media_type=PICTURES[f"report/{name}"])


class _Page:
  """The widgets, and what they do."""

  def __init__(self, studio: Studio, view: RunView | None, title: str):
    self.studio, self.view = studio, view
    self.files = ClipFiles(studio.data.frame_rate)
    self.oracle = oracle_of(studio.data)
    with gr.Blocks(
      title="videoar_jax playground", analytics_enabled=False, fill_width=True
    ) as self.blocks:
      gr.HTML(f'<div id="title"><h1>videoar_jax playground</h1><span>{escape(title)}</span></div>')
      with gr.Tabs():
        with gr.Tab("Make clips", id="clips"):
          self._add_clips()
        if view is not None:
          with gr.Tab("The run", id="run") as tab:
            self._add_run(tab)
    self.blocks.unload(self._leave)
    self.blocks.queue(max_size=_WAITING, api_open=False)

  # Clips.

  def _add_clips(self) -> None:
    with gr.Row(equal_height=False):
      with gr.Column(scale=4, min_width=340, elem_id="asking"):
        self._add_fields()
      with gr.Column(scale=7, min_width=420):
        self.stage = gr.HTML(notice(_EMPTY, "empty"), elem_id="stage")
        self.longer = gr.Button("Longer", visible=False, elem_id="longer")
    self._connect()

  def _add_fields(self) -> None:
    studio = self.studio
    if studio.classes:
      self.prompt = gr.Dropdown(
        list(studio.classes), value=studio.classes[0], label="Class", elem_id="prompt"
      )
    else:
      self.prompt = gr.Textbox(
        studio.example_prompt(), label="Prompt", lines=2, max_lines=6, elem_id="prompt"
      )
    if studio.is_sprites:
      self._add_menus()
    with gr.Row():
      choices = [n for n in (1, 2, 4, MAX_CLIPS) if n <= studio.model.batch_size]
      self.num_clips = gr.Dropdown(
        choices,
        value=min(DEFAULT_CLIPS, choices[-1]),
        label="Clips",
        min_width=70,
        elem_id="num_clips",
      )
      self.num_frames = gr.Dropdown(
        studio.lengths, value=studio.lengths[-1], label="Frames", min_width=70, elem_id="num_frames"
      )
      self.seed = gr.Number(0, label="Seed", min_width=70, elem_id="seed")
    with gr.Row():
      self.dice = gr.Button("Another seed", size="sm", min_width=90)
      self.upload = gr.UploadButton(
        "Start image",
        size="sm",
        min_width=90,
        elem_id="upload",
        visible=studio.model.num_frames > 1,
      )
      self.forget = gr.Button("No image", size="sm", min_width=90, visible=False)
    self.start = gr.HTML(visible=False, elem_id="start")
    with gr.Accordion("Sampling", open=False, elem_id="sampling"):
      self.values = [self._setting_field(setting) for setting in studio.settings]
    with gr.Row(elem_id="actions"):
      self.generate = gr.Button("Generate", variant="primary", elem_id="generate")
      self.cancel = gr.Button("Cancel", elem_id="cancel", interactive=False)

  def _setting_field(self, setting) -> gr.components.Component:
    name = {"label": setting.label, "info": setting.text, "elem_id": setting.name}
    if setting.kind is str or setting.may_be_empty:  # An empty number would be shown as 0.
      text = "" if setting.default is None else str(setting.default)
      return gr.Textbox(text, placeholder="default" if setting.may_be_empty else None, **name)
    return gr.Number(setting.default, **name)

  def _add_menus(self) -> None:
    """Adds menus that write the prompt, a row for each object."""
    scene, menus = first_scene(self.studio.num_objects), []
    parts = (
      ("size", captions.SIZES),
      ("colour", captions.COLOURS),
      ("shape", captions.SHAPES),
      ("motion", captions.MOTIONS),
    )
    with gr.Row(elem_id="menus"):
      for i, sprite in enumerate(scene.objects):
        for name, choices in parts:
          shown = [(captions.MOTION_PHRASES.get(choice, choice), choice) for choice in choices]
          label = name if len(scene.objects) == 1 else f"{name} {i + 1}"
          menus.append(
            gr.Dropdown(shown, value=getattr(sprite, name), label=label, elem_id=f"{name}_{i}")
          )
      menus.append(
        gr.Dropdown(
          list(captions.BACKGROUNDS), value=scene.background, label="on", elem_id="background"
        )
      )

    def write(*chosen: str) -> str:
      objects = tuple(captions.Sprite(*chosen[i : i + 4]) for i in range(0, len(chosen) - 1, 4))
      return captions.to_caption(captions.Scene(objects, chosen[-1]))

    for menu in menus:
      menu.input(write, menus, self.prompt, queue=False, **_HIDDEN)

  def _connect(self) -> None:
    inputs = [self.prompt, self.num_clips, self.num_frames, self.seed, *self.values]
    buttons = [self.generate, self.cancel, self.longer]
    turn = _HIDDEN | {"concurrency_id": "model", "concurrency_limit": 1}
    enter = {"outputs": [self.stage, *buttons], **_AT_ONCE}
    begin = gr.on(
      [self.generate.click, *([self.prompt.submit] if not self.studio.classes else [])],
      self._enter,
      inputs,
      validator=self._check,
      **enter,
    )
    more = self.longer.click(self._enter_longer, inputs, validator=self._check, **enter)
    outputs = [self.stage, *buttons]
    made = begin.success(self._generate, inputs, outputs, **turn)
    continued = more.success(self._continue, inputs, outputs, **turn)
    self.cancel.click(
      self._stop, None, [self.stage, *buttons], cancels=[made, continued], queue=False, **_HIDDEN
    )
    self.dice.click(lambda: random.randrange(2**16), None, self.seed, queue=False, **_HIDDEN)
    self.upload.upload(self._take_image, self.upload, [self.start, self.forget], **_AT_ONCE)
    self.forget.click(self._drop_image, None, [self.start, self.forget], queue=False, **_HIDDEN)

  def _check(self, prompt: str, num_clips, num_frames, seed, *values) -> list[dict]:
    """Checks all fields before a request stands in line; says what is wrong beside the field."""
    names = ["prompt", "num_clips", "num_frames", "seed"]
    names += [setting.name for setting in self.studio.settings]
    wrong: dict[str, str] = {}
    try:
      self.studio.wish(prompt, num_clips, num_frames, seed, list(values))
    except FieldError as error:
      wrong[error.field if error.field in names else "prompt"] = error.message
    return [gr.validate(name not in wrong, wrong.get(name, "")) for name in names]

  def _enter(self, request: gr.Request, *_: Any):
    return self._wait(request, keeps_clips=False)

  def _enter_longer(self, request: gr.Request, *_: Any):
    return self._wait(request, keeps_clips=True)

  def _wait(self, request: gr.Request, keeps_clips: bool) -> tuple:
    """Puts a browser in line; returns what it shows meanwhile."""
    ahead = self.studio.enter(request.session_hash, keeps_clips)
    text = "Starting" if not ahead else f"Waiting for {ahead} before you"
    return notice(text, "waiting"), *self._buttons(is_busy=True)

  def _generate(self, request: gr.Request, prompt, num_clips, num_frames, seed, *values):
    visitor = self.studio.visitor(request.session_hash)
    try:
      wish = self.studio.wish(
        prompt, num_clips, num_frames, seed, list(values), image=visitor.image
      )
    except FieldError as error:
      visitor.stop()
      yield notice(error.message, "stopped"), *self._buttons(is_busy=False)
      return
    yield from self._make(wish, visitor)

  def _continue(self, request: gr.Request, prompt, num_clips, num_frames, seed, *values):
    visitor = self.studio.visitor(request.session_hash)
    if visitor.growth is None:
      visitor.stop()
      yield notice("There is no clip to continue; generate one.", "stopped"), *self._buttons(False)
      return
    try:
      wish = self.studio.wish(
        prompt, num_clips, num_frames, seed, list(values), before=visitor.growth
      )
    except FieldError as error:
      visitor.stop()
      yield notice(error.message, "stopped"), *self._buttons(is_busy=False)
      return
    yield from self._make(wish, visitor)

  def _make(self, wish: Wish, visitor: Visitor) -> Iterator[tuple]:
    """Yields the clips as they grow, and at last as videos."""
    stopped, is_finished = visitor.stopped, False
    try:
      for growth in self.studio.make(wish, stopped):
        is_finished, visitor.newest = growth.is_finished, growth
        if not is_finished:
          yield cards(growth), *self._buttons(is_busy=True)
    except FieldError as error:
      yield notice(error.message, "stopped"), *self._buttons(is_busy=False)
      return
    if not is_finished:
      yield self._stopped(visitor)
      return
    visitor.growth = growth
    sources = [f"clips/{self.files.add(clip)}.mp4" for clip in growth.frames]
    shown = cards(growth, sources, self._readings(growth))
    yield shown, *self._buttons(is_busy=False, can_continue=self.studio.can_continue)

  def _readings(self, growth: Growth) -> list | None:
    """Returns what the oracle of moving shapes reads in each clip; None for other prompts."""
    if self.oracle is None or growth.frames.shape[1] < 4:
      return None
    try:
      return [self.oracle.reading(clip, growth.wish.prompt) for clip in growth.frames]
    except ValueError:  # The prompt is another sentence.
      return None

  def _stop(self, request: gr.Request) -> tuple:
    visitor = self.studio.visitor(request.session_hash)
    visitor.stop()
    return self._stopped(visitor)

  def _stopped(self, visitor: Visitor) -> tuple:
    """Returns what a browser shows that has cancelled its clips: as far as they were made."""
    newest = visitor.newest
    if newest is None or newest.newest is None:
      return notice("Cancelled.", "stopped"), *self._buttons(is_busy=False)
    return cards(newest, is_stopped=True), *self._buttons(is_busy=False)

  def _buttons(self, is_busy: bool, can_continue: bool = False) -> tuple:
    """Returns the buttons Generate, Cancel and Longer."""
    return (
      gr.Button(interactive=not is_busy),
      gr.Button(interactive=is_busy),
      gr.Button(visible=can_continue and not is_busy),
    )

  def _take_image(self, path: str, request: gr.Request):
    visitor = self.studio.visitor(request.session_hash)
    try:
      visitor.image = self.studio.read_image(path)
    except FieldError as error:
      visitor.image = None
      return gr.HTML(_error(error.message), visible=True), gr.Button(visible=False)
    height, width = visitor.image.shape[:2]
    text = f"Clips begin with this image, at the model's {width}x{height} pixels."
    shown = (
      f'<div class="start"><img src="{data_uri(visitor.image)}" alt=""><span>{text}</span></div>'
    )
    return gr.HTML(shown, visible=True), gr.Button(visible=True)

  def _drop_image(self, request: gr.Request):
    self.studio.visitor(request.session_hash).image = None
    return gr.HTML("", visible=False), gr.Button(visible=False)

  def _leave(self, request: gr.Request) -> None:
    self.studio.leave(request.session_hash)

  # The run.

  def _add_run(self, tab: gr.Tab) -> None:
    seen = gr.State("")
    stages = gr.HTML("", elem_id="run")
    report = gr.Markdown("", elem_id="report")
    timer = gr.Timer(_EVERY_S, active=False)
    busy = threading.Lock()

    def look(last: str):
      """Shows what is new; nothing changes on the page if nothing is."""
      with busy:
        found = self.view.fingerprint()
        if found == last:
          return gr.skip(), gr.skip(), gr.skip()
        return found, self.view.html(), self.view.report()

    outputs = [seen, stages, report]
    timer.tick(look, seen, outputs, **_AT_ONCE)
    tab.select(look, seen, outputs, **_AT_ONCE)
    tab.select(lambda: gr.Timer(active=True), None, timer, queue=False, **_HIDDEN)


def _error(message: str) -> str:
  return f'<p class="fieldError">{escape(message)}</p>'
