"""The paper's class-conditional model on UCF-101: 17 frames of 128x128, 926M (l) or 2.0B (xl).

Convert the public image tokenizer (docs/tokenizer.md) and LPIPS (docs/evaluation.md) once, then:

  python -m videoar_jax.main --workdir=runs/ucf101 \
    --config=configs/videoar_ucf101.py:size=l,data=FOLDER,init=weights/infinity_d32

FOLDER has the videos, with one folder per class; lists=FOLDER names the folder of UCF-101's
official split lists. The paper reports gFVD 90.3 (l) and 88.6 (xl) in 30 steps, but not how long
the generator trains, nor the frame rate: those are our choices.
"""

from ml_collections import ConfigDict

from configs import tokenizer_ucf101
from configs.common import generator_size, parse_arg
from videoar_jax.experiment.defaults import default_config

_CLASSES = """
ApplyEyeMakeup ApplyLipstick Archery BabyCrawling BalanceBeam BandMarching BaseballPitch
Basketball BasketballDunk BenchPress Biking Billiards BlowDryHair BlowingCandles
BodyWeightSquats Bowling BoxingPunchingBag BoxingSpeedBag BreastStroke BrushingTeeth
CleanAndJerk CliffDiving CricketBowling CricketShot CuttingInKitchen Diving Drumming Fencing
FieldHockeyPenalty FloorGymnastics FrisbeeCatch FrontCrawl GolfSwing Haircut Hammering
HammerThrow HandstandPushups HandstandWalking HeadMassage HighJump HorseRace HorseRiding
HulaHoop IceDancing JavelinThrow JugglingBalls JumpingJack JumpRope Kayaking Knitting LongJump
Lunges MilitaryParade Mixing MoppingFloor Nunchucks ParallelBars PizzaTossing PlayingCello
PlayingDaf PlayingDhol PlayingFlute PlayingGuitar PlayingPiano PlayingSitar PlayingTabla
PlayingViolin PoleVault PommelHorse PullUps Punch PushUps Rafting RockClimbingIndoor
RopeClimbing Rowing SalsaSpin ShavingBeard Shotput SkateBoarding Skiing Skijet SkyDiving
SoccerJuggling SoccerPenalty StillRings SumoWrestling Surfing Swing TableTennisShot TaiChi
TennisSwing ThrowDiscus TrampolineJumping Typing UnevenBars VolleyballSpiking WalkingWithDog
WallPushups WritingOnBoard YoYo
"""


def get_config(arg: str | None = None) -> ConfigDict:
  """Returns the config.

  Args:
    arg: `size=` l or xl; `data=` the folder of videos; `lists=` the folder of the official lists;
      `init=` a converted image tokenizer; `steps=` of the generator.
  """
  args = parse_arg(arg, size="l", data="", lists="", init="", steps=200_000)
  config = default_config({"tokenizer": "tokenizer", "generator": "generator"})
  tokenizer = tokenizer_ucf101.get_config(f"data={args.data},init={args.init}")
  for section in ("data", "tokenizer", "mesh"):
    config[section] = tokenizer[section]
  config.stage.tokenizer = tokenizer.stage.tokenizer
  if args.lists:
    config.data.split_file = f"{args.lists}/trainlist01.txt"
  config.data.is_flipped = True
  config.text.tokenizer = "classes"
  config.text.classes = tuple(_CLASSES.split())
  config.text.length = 1
  config.generator.update(generator_size(args.size))
  config.sampling.guidance = "ucf101"

  loop = config.stage.generator.loop
  loop.num_steps = args.steps
  loop.batch_size = 128
  loop.ema_decay = 0.9999
  loop.save_every = 2000
  loop.media_every = 5000
  loop.optimizer.warmup_steps = 5000
  return config
