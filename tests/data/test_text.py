import numpy as np
import pytest

from videoar_jax.data.text import ByteTokenizer


@pytest.mark.parametrize("text", ["", "a small star", "Grüße, 世界 🎈", "x" * 31])
def test_decode_inverts_encode(text):
  tokens = ByteTokenizer(32).encode(text)
  assert tokens.shape == (32,) and tokens.dtype == np.int32
  assert tokens.min() >= 0 and tokens.max() < ByteTokenizer.vocabulary_size
  assert ByteTokenizer(32).decode(tokens) == text
  assert np.sum(tokens != ByteTokenizer.pad_id) == len(text.encode()) + 1


def test_every_byte_has_a_token_of_its_own():
  text = "".join(map(chr, range(128)))
  tokens = ByteTokenizer(200).encode(text)[:128]
  assert len(set(tokens.tolist())) == 128
  assert not set(tokens.tolist()) & {ByteTokenizer.pad_id, ByteTokenizer.end_id}


def test_null_prompt_is_the_end_token_alone():
  assert ByteTokenizer(4).null().tolist() == [ByteTokenizer.end_id, 0, 0, 0]


def test_too_long_prompt_says_what_to_do():
  with pytest.raises(ValueError, match=r"10 bytes.*text\.length = 10.*at least 11.*shorten"):
    ByteTokenizer(10).encode("0123456789")
