import itertools

import pytest

from videoar_jax.data.synthetic import captions
from videoar_jax.data.synthetic.captions import Scene, Sprite


def test_parse_inverts_to_caption_for_all_objects():
  product = itertools.product(captions.SIZES, captions.COLOURS, captions.SHAPES, captions.MOTIONS)
  sprites = [Sprite(*attributes) for attributes in product]
  for first, second in zip(sprites, sprites[7:] + sprites[:7], strict=True):
    for background in (*captions.BACKGROUNDS, None):
      for objects in ((first,), (first, second)):
        scene = Scene(objects, background)
        assert captions.parse_caption(captions.to_caption(scene)) == scene


def test_captions_read_as_documented():
  first = Sprite("small", "blue", "star", "diagonal")
  scene = Scene((first, Sprite("large", "red", "circle", "bounce")), "grey")
  assert captions.to_caption(scene) == (
    "a small blue star moves diagonally and a large red circle bounces off the walls "
    "on a grey background"
  )


def test_what_a_prompt_leaves_out_is_none():
  assert captions.parse_caption("A small blue star moves up.") == Scene(
    (Sprite("small", "blue", "star", "up"),), None
  )
  assert captions.parse_caption("a star") == Scene((Sprite(shape="star"),), None)


@pytest.mark.parametrize(
  ("caption", "word"),
  [
    ("a small pink star moves up", "pink"),
    ("a small blue hexagon moves up", "hexagon"),
    ("a small blue star jumps", "jumps"),
    ("a small blue star moves sideways", "sideways"),
    ("a small blue star moves up on a mauve background", "mauve"),
    ("a small blue star moves up on a grey background quickly", "quickly"),
    ("a blue small star moves up", "small"),
    ("", "end of the caption"),
  ],
)
def test_parse_names_the_word_it_does_not_understand(caption, word):
  with pytest.raises(ValueError, match=word):
    captions.parse_caption(caption)


def test_class_ids_are_all_numbers_below_num_classes():
  product = itertools.product(captions.SHAPES, captions.COLOURS, captions.MOTIONS)
  ids = [captions.class_id(Sprite("small", c, s, m)) for s, c, m in product]
  assert ids == list(range(captions.NUM_CLASSES))


def test_an_eighth_is_held_out_and_every_pair_stays_in_training():
  names = (captions.SHAPES, captions.COLOURS, captions.MOTIONS)
  train = [c for c in itertools.product(*names) if not captions.is_held_out(*c)]
  assert len(train) == captions.NUM_CLASSES * 7 // 8
  for a, b in itertools.combinations(range(3), 2):
    assert {(c[a], c[b]) for c in train} == set(itertools.product(names[a], names[b]))
