"""A small stand-in for UCF-101: folders of classes, and the authors' lists."""

from media_files import write_video

CLASSES = ("Archery", "Biking", "Diving")
SHORT = "Biking/v_Biking_g01_c03.avi"  # Too short for every third frame.


def write_ucf(folder):
  """Writes 4 videos of each class, 3 of them to train on; returns the folder and the first list.

  Their frames show their numbers; they have 51 frames, one of them 40.
  """
  files = [f"{name}/v_{name}_g0{g}_c03.avi" for name in CLASSES for g in range(4)]
  for file in files:
    write_video(folder / "videos" / file, 40 if file == SHORT else 51, 25, codec="mpeg4")
  write_video(folder / "videos" / "Archery" / "unlisted.avi", 20, 25, codec="mpeg4")
  numbers = {name: number for number, name in enumerate(CLASSES, start=1)}
  lists = folder / "lists"
  lists.mkdir()
  (lists / "classInd.txt").write_text("".join(f"{n} {name}\n" for name, n in numbers.items()))
  train = [file for file in files if "_g03_" not in file]
  text = "".join(f"{file} {numbers[file.partition('/')[0]]}\n" for file in train)
  (lists / "trainlist01.txt").write_text(text)
  test = [file for file in files if file not in train]
  (lists / "testlist01.txt").write_text("".join(f"{file}\n" for file in test))
  return folder / "videos", lists / "trainlist01.txt"
