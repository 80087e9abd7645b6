"""`python .ci/drawn.py FOLDER`: exits with 1 unless a comparison left its records and a figure."""

import json
import sys
from pathlib import Path

from matplotlib.image import imread

folder = Path(sys.argv[1])
ends = {
    path.name.partition("-")[0]: json.loads(path.read_text().splitlines()[-1])["end"]
    for path in folder.glob("*.jsonl")
}
drawn = imread(folder / "curves.png")
if ends != dict.fromkeys(("none", "mse", "lora", "e2e"), "finished"):
    sys.exit(f"{folder}: expected four finished runs, got {ends}")
if drawn.std() < 0.01:
    sys.exit(f"{folder}/curves.png: nothing is drawn on it")
print(
    f"{folder}: {len(ends)} finished runs, a figure of {drawn.shape[1]} x {drawn.shape[0]} pixels"
)
