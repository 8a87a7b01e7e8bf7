"""Draw the strip in docs/serving.md: the partial pictures and the last one of a stream, from a real server.

Usage: python docs/images/partials.py
"""

import base64
import io
import re
import subprocess
import sys
from pathlib import Path

import openai
from PIL import Image

PROMPT = "a large red star and a small blue circle"
SIDE, GAP = 160, 12


def pictures(url: str) -> list[Image.Image]:
    """Ask for a picture in a stream and return what each event shows."""
    client = openai.OpenAI(base_url=url + "/v1", api_key="none")
    events = client.images.generate(prompt=PROMPT, stream=True, partial_images=3, extra_body={"seed": 0})
    return [Image.open(io.BytesIO(base64.b64decode(event.b64_json))) for event in events]


def main() -> None:
    command = [sys.executable, "-m", "rhea.cli", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        assert server.stdout is not None
        found = next(filter(None, (re.search(r"http://127\.0\.0\.1:\d+", line) for line in server.stdout)))
        seen = pictures(found[0])
        server.terminate()
        server.stdout.read()
    strip = Image.new("RGB", (len(seen) * (SIDE + GAP) + GAP, SIDE + 2 * GAP), (255, 255, 255))
    for number, picture in enumerate(seen):
        strip.paste(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (GAP + number * (SIDE + GAP), GAP))
    strip.save(Path(__file__).with_name("serving-partials.png"), optimize=True)


if __name__ == "__main__":
    main()
