"""Chips: consistency of their datasheet values, and names of topologies."""

import pytest

from videoar_jax.parallel.hardware import CHIPS, parse_topology


@pytest.mark.parametrize("name", CHIPS)
def test_numbers_are_of_one_kind(name):
  """Generations differ by less than these bounds; an error by a factor of 10 would not."""
  chip = CHIPS[name]
  assert 120 < chip.flops / chip.bandwidth < 600
  assert 1 / 13 < chip.link_bandwidth / chip.bandwidth < 1 / 4
  assert 1 / 200 < chip.network_bandwidth / chip.link_bandwidth < 1 / 8
  # Seconds to read all of the memory.
  assert 0.015 < chip.memory / chip.bandwidth < 0.045
  assert chip.device_memory * chip.num_devices == chip.memory


def test_memory_is_what_the_compiler_grants_a_device():
  """In GiB; data sheets have 32, 16, 95, 32 and 96."""
  granted = {"v4": 30.75, "v5e": 15.75, "v5p": 95.73, "v6e": 31.24, "tpu7x": 94.74}
  assert {name: CHIPS[name].device_memory / 2**30 for name in granted} == pytest.approx(granted)
  # A megacore's two cores are one device; those of tpu7x are two.
  assert [name for name in granted if CHIPS[name].num_devices == 2] == ["tpu7x"]


def test_links_are_of_one_direction():
  """Datasheets give the sum of both directions: 400, 1200, 800 and 1200 GB/s for these TPUs."""
  both = {"v5e": 400e9, "v5p": 1200e9, "v6e": 800e9, "tpu7x": 1200e9, "h100": 900e9}
  assert {name: 2 * CHIPS[name].link_bandwidth for name in both} == both


def test_a_pods_name_is_read():
  chip, num_chips = parse_topology("v5p:4x4x8")
  assert chip is CHIPS["v5p"] and num_chips == 128
