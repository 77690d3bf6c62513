import itertools
import json
import sys

import numpy as np
import pytest

from videoar_jax.data.synthetic import captions
from videoar_jax.text.tokenizers import PAD_ID, ByteTokenizer, PromptTooLong, make_text_encoder


@pytest.mark.parametrize("text", ["", "a small star", "Grüße, 世界 🎈", "x" * 31])
def test_decode_inverts_encode(text):
  tokens = ByteTokenizer(32).encode(text)
  assert tokens.shape == (32,) and tokens.dtype == np.int32
  assert tokens.min() >= 0 and tokens.max() < ByteTokenizer.vocabulary_size
  assert ByteTokenizer(32).decode(tokens) == text
  assert np.sum(tokens != PAD_ID) == len(text.encode()) + 1


def test_every_byte_has_a_token_of_its_own():
  text = "".join(map(chr, range(128)))
  tokens = ByteTokenizer(200).encode(text)[:128]
  assert len(set(tokens.tolist())) == 128
  assert not set(tokens.tolist()) & {PAD_ID, ByteTokenizer.end_id}


def test_null_prompt_is_the_end_token_alone():
  assert ByteTokenizer(4).null().tolist() == [ByteTokenizer.end_id, 0, 0, 0]


def test_too_long_prompt_says_what_to_do():
  with pytest.raises(ValueError, match=r"10 bytes.*text\.length = 10.*at least 11.*shorten"):
    ByteTokenizer(10).encode("0123456789")


def test_words_are_a_token_each():
  encoder = make_text_encoder("words", 8, ())
  tokens = encoder.encode("A large  STAR, a Grüß!")
  a, large, star, comma, again, other, sign, end = tokens.tolist()
  assert a == again and end == encoder.end_id
  assert min(a, large, star, comma, other, sign) >= 2 and tokens.max() < encoder.vocabulary_size
  # The same in every process, unlike `hash`.
  assert encoder.encode("star").tolist() == [star, 1, *[PAD_ID] * 6] and star == 2216
  assert encoder.null().tolist() == [1, *[PAD_ID] * 7]
  # Names of folders, and accents as macOS writes them.
  for one, same in (("playing_guitar", "playing guitar"), ("cafe\u0301", "caf\u00e9")):
    np.testing.assert_array_equal(encoder.encode(one), encoder.encode(same))
  with pytest.raises(ValueError, match=r"8 words.*text\.length = 8.*at least 9"):
    encoder.encode("one two three four five six seven eight")


def test_no_two_words_of_the_sprites_share_a_token():
  looks = (captions.SIZES, captions.COLOURS, captions.SHAPES, captions.MOTIONS)
  words = {
    word
    for *look, background in itertools.product(*looks, captions.BACKGROUNDS)
    for word in captions.to_caption(captions.Scene((captions.Sprite(*look),), background)).split()
  }
  encoder = make_text_encoder("words", 2, ())
  assert len({int(encoder.encode(word)[0]) for word in words}) == len(words) == 29


@pytest.fixture
def tokenizer_file(tmp_path):
  """A tokenizer of four words, whose own padding and end tokens must not be used."""
  pytest.importorskip("tokenizers")
  words = {"[PAD]": 0, "a": 1, "red": 2, "star": 7}
  special = {"id": 0, "content": "[PAD]", "single_word": False, "lstrip": False, "rstrip": False}
  padding = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None}
  file = {
    "version": "1.0",
    "truncation": None,
    "padding": padding | {"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
    "added_tokens": [special | {"normalized": False, "special": True}],
    "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": words, "unk_token": "[PAD]"},
  }
  path = tmp_path / "words.json"
  path.write_text(json.dumps(file))
  return str(path)


def test_file_of_a_tokenizer(tokenizer_file):
  encoder = make_text_encoder(tokenizer_file, 5, ())
  assert encoder.encode("a red star").tolist() == [3, 4, 9, 1, 0]
  assert encoder.null().tolist() == [1, 0, 0, 0, 0]
  assert encoder.vocabulary_size == 10
  with pytest.raises(ValueError, match=r"5 tokens.*at least 6"):
    encoder.encode("a a a red star")


def test_wrong_files_of_a_tokenizer_are_named(tmp_path, tokenizer_file, monkeypatch):
  (tmp_path / "bad.json").write_text("{}")
  for path in ("nowhere.json", str(tmp_path / "bad.json")):
    with pytest.raises(ValueError, match=r"text\.tokenizer=.*is not a tokenizer file"):
      make_text_encoder(path, 5, ())
  monkeypatch.setitem(sys.modules, "tokenizers", None)
  with pytest.raises(ValueError, match=r"pip install 'videoar_jax\[tokenizers\]'"):
    make_text_encoder(tokenizer_file, 5, ())


def test_classes_are_one_token_each():
  encoder = make_text_encoder("classes", 1, ("run", "jump"))
  tokens = [encoder.encode("run"), encoder.encode("jump"), encoder.null()]
  assert [token.tolist() for token in tokens] == [[2], [3], [1]]
  assert encoder.vocabulary_size == 4
  with pytest.raises(ValueError, match="'jmp' is unknown; did you mean 'jump'"):
    encoder.encode("jmp")


@pytest.mark.parametrize(
  ("tokenizer", "length", "classes", "said"),
  [
    ("classes", 2, ("run",), "set text.length = 1"),
    ("classes", 1, (), "text.classes must list the names"),
    ("classes", 1, ("run", "run"), "each once"),
    ("bytes", 8, ("run",), "text.classes is set"),
    ("letters", 8, (), "text.tokenizer='letters' must be"),
    ("words", 0, (), "text.length is 0"),
  ],
)
def test_wrong_text_settings_are_named(tokenizer, length, classes, said):
  with pytest.raises(ValueError, match=said):
    make_text_encoder(tokenizer, length, classes)


@pytest.mark.parametrize("length", range(1, 12))
@pytest.mark.parametrize("text", ["a red star a star", "Grüße, 世界 🎈!", "İstanbul\u0301 x_y"])
@pytest.mark.parametrize("kind", ["bytes", "words", "file"])
def test_a_prompt_that_is_too_long_is_cut_at_a_token(kind, text, length, request):
  kind = request.getfixturevalue("tokenizer_file") if kind == "file" else kind
  encoder, whole = (make_text_encoder(kind, size, ()) for size in (length, 64))
  tokens = whole.encode(text)
  num_tokens = int(np.argmax(tokens == encoder.end_id))
  if num_tokens < length:
    assert encoder.encode(text).tolist() == tokens[:length].tolist()
    return
  with pytest.raises(PromptTooLong) as raised:
    encoder.encode(text)
  cut = encoder.encode(raised.value.cut)
  kept = int(np.argmax(cut == encoder.end_id))
  assert cut[:kept].tolist() == tokens[:kept].tolist()
  # Only a letter of several bytes may not fit as a whole.
  assert kept == length - 1 or (kind == "bytes" and length - 4 <= kept)
