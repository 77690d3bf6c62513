"""A run: one config in one workdir, from the first stage to the last."""

import itertools
import logging
import os
import pathlib
import re
from typing import Any

import jax
from ml_collections import ConfigDict

from videoar_jax.data.bad_samples import write_bad_samples
from videoar_jax.data.pipeline import DataConfig, make_source
from videoar_jax.experiment import data_listing, file_copies, final_weights, parse, paths
from videoar_jax.experiment.captions import source_encoder
from videoar_jax.experiment.defaults import complete
from videoar_jax.experiment.schema import StageConfig
from videoar_jax.experiment.stages import Stages
from videoar_jax.experiment.validate import (
  check_batches,
  check_cache,
  check_captions,
  check_commits,
  check_frozen,
  check_init,
  check_mixtures,
  check_null_text,
  check_report,
)
from videoar_jax.experiment.workdir import check_same_config, check_shared, lock, write_facts
from videoar_jax.parallel import processes
from videoar_jax.parallel.mesh import make_mesh
from videoar_jax.runtime import huge_pages
from videoar_jax.runtime.compilation_cache import use_compilation_cache
from videoar_jax.runtime.log_files import held_log, quiet_libraries, start_errors_log, start_log
from videoar_jax.runtime.versions import untested_warning
from videoar_jax.train.checkpoint import Damaged

log = logging.getLogger(__name__)


class Run:
  """Opens a workdir for a config.

  Args:
    config: from a config file.
    workdir: created if it does not exist.
    is_changed_data_allowed: whether to resume on data that changed since the run began.
  Attributes:
    stages: the stages and their checkpoints.
    train_source, test_source: clips.
    is_new: whether nothing was trained in this workdir before.
  Raises:
    ValueError: the config is wrong, or the workdir belongs to another config or to other data.
  """

  @held_log()  # Its file is in the workdir, which is written to last.
  def __init__(
    self, config: ConfigDict, workdir: pathlib.Path, *, is_changed_data_allowed: bool = False
  ):
    quiet_libraries()
    # What is saved holds in other folders, too.
    values = paths.absolute(complete(config).to_dict())
    config = complete(values)
    values_here = file_copies.with_copies(values, workdir, is_training=True)
    run = parse.finalize(values_here)
    changes = check_same_config(config, workdir)
    self.workdir = workdir
    use_compilation_cache()
    self.stages = Stages(run, workdir, make_mesh(run.mesh))
    self.is_new = all(self.stages.latest_step(stage) == 0 for stage in run.stages)
    if not self.is_new:
      file_copies.check_same_text(values_here, run.text.encoder, workdir)
      file_copies.check_same_tokenizer(values_here, workdir)
    check_batches(self.stages)
    check_null_text(run.text.encoder)
    check_report(self.stages)
    check_mixtures(self.stages)
    # Sources are opened before anything is written: a wrong folder leaves no workdir behind. So are
    # those of later stages: their errors should not show after days of training.
    self._opened: dict = {}
    self.train_source = self._source(run.data)
    self.test_source = self._source(run.data, "test")
    for stage in run.stages:
      if not self.stages.is_finished(stage):
        self._sources_of(stage)
    check_init(self.stages)
    check_frozen(self.stages)
    check_commits()
    for cache in filter(self.stages.is_needed, run.caches):
      check_cache(self.stages, cache, self._source(cache.data))
    listings, changed_data = self._listings(), []
    if not self.is_new:
      changed_data = data_listing.check_same(workdir, listings, is_allowed=is_changed_data_allowed)
    if processes.is_first():
      workdir.mkdir(parents=True, exist_ok=True)
      lock(workdir)
      start_log(workdir / "log.txt")
      parse.save_config(config, workdir / "config.json")
      file_copies.keep(values_here, run.text.encoder, workdir, is_new=self.is_new)
      data_listing.write(workdir, listings)
      write_facts(self.stages)
      if any(re.match(r"config\.(report|sampling)\.", line) for line in changes):
        (workdir / "report.md").unlink(missing_ok=True)  # It is of other settings.
    else:
      start_errors_log()
    check_shared(workdir)
    if warning := untested_warning():
      log.warning("%s", warning)
    log.info("%s", huge_pages.describe(os.environ))
    for line in changes:
      log.info("config changed: %s", line)
    for line in changed_data:
      log.warning("the data changed: %s", line)
    for file, reason in getattr(self.train_source, "skipped", []):
      log.warning("skipped %s: %s", file, reason)

  @property
  def is_finished(self) -> bool:
    """Whether all stages are finished."""
    return all(map(self._is_finished, self.stages.run.stages))

  def _is_finished(self, stage: StageConfig) -> bool:
    """Returns whether the first process sees a stage finished; others may see its files late."""
    return bool(processes.broadcast(self.stages.is_finished(stage)))

  def train(self, only: str | None = None) -> bool:
    """Trains unfinished stages; returns whether there was anything to train.

    Samples that cannot be used are listed in `bad_samples.jsonl` as soon as they are found.

    Args:
      only: the only stage to train; None for all.
    Raises:
      Preempted: a signal came; what was trained is saved.
      ValueError: there is no such stage, or one before it is not finished.
    """
    # Processes read different samples; each has its own file.
    process = jax.process_index()
    name = f"bad_samples.{process}.jsonl" if process else "bad_samples.jsonl"
    write_bad_samples(self.workdir / name, self._opened.values())
    while True:
      if only is not None:
        self._check_only(only)
      try:
        has_trained = self._train(only)
        # Of several processes, none can hold all weights that their devices share.
        if jax.process_count() == 1 and self.is_finished:
          self.stages.write_final_weights()
        return has_trained
      except Damaged as damaged:
        log.error("%s, then the later stages follow", damaged)

  def _check_only(self, only: str) -> None:
    """Raises ValueError if a stage cannot be trained by itself; names the one to finish first."""
    stages = {stage.name: stage for stage in self.stages.run.stages}
    if only not in stages:
      raise ValueError(f"--stage={only} is not a stage; they are {', '.join(stages)}")
    for name, stage in itertools.takewhile(lambda pair: pair[0] != only, stages.items()):
      if not self._is_finished(stage):
        raise ValueError(f"--stage={only} starts from stage {name}; finish --stage={name} first")

  def _train(self, only: str | None) -> bool:
    has_trained = False
    self._encode_after("")
    for stage in self.stages.run.stages:
      if only is not None and stage.name != only:
        continue
      if self._is_finished(stage):
        log.info("stage %s: already finished, %d steps", stage.name, stage.loop.num_steps)
      else:
        # The last report is outdated.
        if processes.is_first():
          (self.workdir / "report.md").unlink(missing_ok=True)
          final_weights.remove(self.workdir)
        self.stages.on_mesh_of(stage).train(stage, *self._sources_of(stage))
        has_trained = True
      self._encode_after(stage.name)
    return has_trained

  def _encode_after(self, stage: str) -> None:
    """Encodes the caches that follow a stage, or for "" those before the first."""
    for cache in self.stages.run.caches:
      if cache.after == stage and processes.broadcast(self.stages.is_needed(cache)):
        self.stages.encode(cache, self._source(cache.data))

  def _sources_of(self, stage: StageConfig) -> tuple[list, Any]:
    """Opens the training sources of a stage, and the test clips to show."""
    return [self._source(data) for data in stage.source_data], self._source(stage.data, "test")

  def _listings(self) -> dict[str, dict]:
    """Returns what the opened sources list, by section and split."""
    listings = {key: data_listing.describe(source) for key, source in self._opened.items()}
    return {
      f"{name} {split}": listing
      for name, own in data_listing.sections_of(self.stages.run).items()
      for (data, split), listing in listings.items()
      if data == own and listing is not None
    }

  def _source(self, data: DataConfig, split: str = "train"):
    """Opens a data set, once.

    Raises:
      ValueError: there is none, or the text encoder cannot encode a caption.
    """
    if (data, split) not in self._opened:
      source = make_source(data, split)
      check_captions(source, source_encoder(self.stages.run, data))
      self._opened[data, split] = source
    return self._opened[data, split]
