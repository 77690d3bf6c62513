"""Published specifications of accelerators, and names of topologies such as `v5p:4x4x4`.

Source: for TPUs, the "key specifications" tables of docs.cloud.google.com/tpu/docs/v4, v5e, v5p,
v6e and tpu7x; for GPUs, NVIDIA's data sheets of A100 80GB SXM, H100 SXM, H200 SXM and DGX B200,
without sparsity. Published link bandwidths add both directions; here they are for one direction.
Network bandwidth is the published figure per chip, except for v4, which takes the 50 Gbit/s of v5p;
for GPUs it is one port per GPU, of 200 (A100) or 400 Gbit/s.

The memory of TPUs is not that of the tables, but what the compiler grants a program: libtpu 0.0.52
names it when a program needs more. The two cores of a v4 chip are one device, as on its hosts.
"""

import dataclasses
import math
import re

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
  """An accelerator.

  Attributes:
    kind: JAX's `device_kind`.
    flops: peak FLOP/s of bfloat16 matrix products.
    memory: memory that a program may use, in bytes.
    bandwidth: memory bandwidth in bytes/s.
    link_bandwidth: total bandwidth to its neighbours, in one direction, in bytes/s.
    network_bandwidth: its share of the host's network, which connects slices, in bytes/s.
    is_tpu: a TPU, for which programs can be compiled ahead of time without the hardware.
    num_devices: number of JAX devices per chip.
  """

  kind: str
  flops: float
  memory: float
  bandwidth: float
  link_bandwidth: float
  network_bandwidth: float
  is_tpu: bool = True
  num_devices: int = 1

  @property
  def device_flops(self) -> float:
    """Peak FLOP/s of one device."""
    return self.flops / self.num_devices

  @property
  def device_memory(self) -> float:
    """Memory of one device, in bytes."""
    return self.memory / self.num_devices


CHIPS = {
  "v4": Chip("TPU v4", 275e12, 30.75 * 2**30, 1228e9, 300e9, 6.25e9),
  "v5e": Chip("TPU v5 lite", 197e12, 15.75 * 2**30, 819e9, 200e9, 3.125e9),
  "v5p": Chip("TPU v5", 459e12, 95.73 * 2**30, 2765e9, 600e9, 6.25e9),
  "v6e": Chip("TPU v6 lite", 918e12, 31.24 * 2**30, 1638e9, 400e9, 12.5e9),
  "tpu7x": Chip("TPU7x", 2307e12, 2 * 94.74 * 2**30, 7380e9, 600e9, 12.5e9, num_devices=2),
  "a100": Chip("NVIDIA A100-SXM4-80GB", 312e12, 80e9, 2039e9, 300e9, 25e9, False),
  "h100": Chip("NVIDIA H100 80GB HBM3", 989e12, 80e9, 3350e9, 450e9, 50e9, False),
  "h200": Chip("NVIDIA H200", 989e12, 141e9, 4800e9, 450e9, 50e9, False),
  "b200": Chip("NVIDIA B200", 2250e12, 180e9, 8000e9, 900e9, 50e9, False),
}


def peak_flops() -> float | None:
  """Returns the peak FLOP/s of all devices together; None if the device kind is unknown."""
  kind = jax.devices()[0].device_kind
  peak = next((chip.device_flops for chip in CHIPS.values() if chip.kind == kind), None)
  return None if peak is None else peak * jax.device_count()


def parse_topology(text: str) -> tuple[Chip, int]:
  """Reads `CHIP:AxB`, such as `v5e:4x8`, `v5p:4x4x4` or `h100:4x8`.

  Returns:
    The chip, and the number of chips.
  Raises:
    ValueError: the text has another form, or the chip is unknown; the message lists known chips.
  """
  match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", text)
  if not match or match[1] not in CHIPS:
    raise ValueError(
      f"--topology={text} is unknown; use CHIP:AxB, such as v5e:4x8 or h100:4x8, with a chip of "
      f"{', '.join(CHIPS)}"
    )
  number = math.prod(int(side) for side in match[2].split("x"))
  if number == 0:
    raise ValueError(f"--topology={text} has no chips; give each side at least 1")
  return CHIPS[match[1]], number
