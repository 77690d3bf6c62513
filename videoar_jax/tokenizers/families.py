"""The tokenizer families; a run uses the one that its model family names."""

from videoar_jax.tokenizers.base import TokenizerFamily
from videoar_jax.tokenizers.bsq.family import BSQ
from videoar_jax.tokenizers.kl.family import KL
from videoar_jax.tokenizers.kl.frozen import KLImage, KLOpenSora
from videoar_jax.tokenizers.star.family import Star

TOKENIZERS: dict[str, TokenizerFamily] = {
  "bsq": BSQ(),
  "kl": KL(),
  "kl_image": KLImage(),
  "kl_opensora": KLOpenSora(),
  "star": Star(),
}
