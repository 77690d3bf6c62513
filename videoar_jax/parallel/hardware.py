"""What accelerators can do, as their makers say, and names of pods such as `v5p:4x4x4`.

Source: of TPUs, the tables "key specifications" of docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e
and tpu7x; of GPUs, NVIDIA's data sheets of A100 80GB SXM, H100 SXM, H200 SXM and DGX B200, without
sparsity. Makers give the bandwidth of links for both directions together; here it is of one. The
share of the network is what makers give a chip, or, for v4, 50 Gbit/s as of v5p; for GPUs, one port
of 200 (A100) or 400 Gbit/s each.
"""

import dataclasses
import math
import re

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
  """An accelerator.

  Attributes:
    kind: what JAX calls it.
    flops: operations a second of matrix products in bfloat16.
    memory: bytes.
    bandwidth: of its memory, bytes a second.
    link_bandwidth: to all its neighbours together, in one direction, bytes a second.
    network_bandwidth: its share of its host's network, by which slices are joined, bytes a second.
    is_tpu: whether its compiler can be had without it.
    num_devices: as which JAX sees it.
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
    """Operations a second of each of its devices."""
    return self.flops / self.num_devices

  @property
  def device_memory(self) -> float:
    """Bytes of each of its devices."""
    return self.memory / self.num_devices


CHIPS = {
  "v4": Chip("TPU v4", 275e12, 32 * 2**30, 1228e9, 300e9, 6.25e9, num_devices=2),
  "v5e": Chip("TPU v5 lite", 197e12, 16 * 2**30, 819e9, 200e9, 3.125e9),
  "v5p": Chip("TPU v5", 459e12, 95 * 2**30, 2765e9, 600e9, 6.25e9),
  "v6e": Chip("TPU v6 lite", 918e12, 32 * 2**30, 1638e9, 400e9, 12.5e9),
  "tpu7x": Chip("TPU7x", 2307e12, 192 * 2**30, 7380e9, 600e9, 12.5e9, num_devices=2),
  "a100": Chip("NVIDIA A100-SXM4-80GB", 312e12, 80e9, 2039e9, 300e9, 25e9, False),
  "h100": Chip("NVIDIA H100 80GB HBM3", 989e12, 80e9, 3350e9, 450e9, 50e9, False),
  "h200": Chip("NVIDIA H200", 989e12, 141e9, 4800e9, 450e9, 50e9, False),
  "b200": Chip("NVIDIA B200", 2250e12, 180e9, 8000e9, 900e9, 50e9, False),
}


def peak_flops() -> float | None:
  """Returns the operations a second that all devices could do; None where that is not known."""
  kind = jax.devices()[0].device_kind
  peak = next((chip.device_flops for chip in CHIPS.values() if chip.kind == kind), None)
  return None if peak is None else peak * jax.device_count()


def parse_topology(text: str) -> tuple[Chip, int]:
  """Reads `CHIP:AxB`, such as `v5e:4x8`, `v5p:4x4x4` or `h100:4x8`.

  Returns:
    The chip, and how many there are.
  Raises:
    ValueError: it is not of that form, or the chip is unknown; lists those known.
  """
  match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", text)
  if not match or match[1] not in CHIPS:
    raise ValueError(
      f"--topology={text} is unknown; it is CHIP:AxB, such as v5e:4x8 or h100:4x8, and chips are "
      f"{', '.join(CHIPS)}"
    )
  number = math.prod(int(side) for side in match[2].split("x"))
  if number == 0:
    raise ValueError(f"--topology={text} has no chips; give each side at least 1")
  return CHIPS[match[1]], number
