"""The model families; `config.family` names one."""

from videoar_jax.models.base import Family
from videoar_jax.models.infinity.family import Infinity
from videoar_jax.models.infinity_star.family import InfinityStar
from videoar_jax.models.nova.family import Nova
from videoar_jax.models.videoar.family import VideoAR

FAMILIES: dict[str, Family] = {
  "videoar": VideoAR(),
  "nova": Nova(),
  "infinity": Infinity(),
  "infinity_star": InfinityStar(),
}


def family_of(name: str) -> Family:
  """Returns a family.

  Raises:
    ValueError: there is none of that name; lists the known ones.
  """
  if name not in FAMILIES:
    raise ValueError(f"config.family={name!r} is unknown; families are {', '.join(FAMILIES)}")
  return FAMILIES[name]
