"""The tokenizer families there are; a run's is that of its model family."""

from videoar_jax.tokenizers.base import TokenizerFamily
from videoar_jax.tokenizers.bsq.family import BSQ

TOKENIZERS: dict[str, TokenizerFamily] = {"bsq": BSQ()}
