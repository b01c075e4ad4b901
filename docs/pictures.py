"""The terminal excerpt and the picture of the report in README.md: of two real runs on the bundled sample.

python docs/pictures.py     some three minutes; needs Chromium
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

IMAGES = Path(__file__).parent / "images"
WIDTH, HEIGHT = 1100, 1250  # of the picture, in CSS pixels
COLUMNS = 100  # of the terminal


def gptask(folder: Path, *arguments: str) -> str:
    """Run a gptask command in ``folder``; return what it prints, without its log."""
    environment = os.environ | {"COLUMNS": str(COLUMNS), "NO_COLOR": "1"}
    command = [sys.executable, "-m", "gptask", *arguments]
    process = subprocess.run(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, check=True)
    return process.stdout


def main() -> None:
    """Train, write docs/images/terminal.txt, and photograph the top of the report as docs/images/report.png."""
    chromium = shutil.which(os.environ.get("CHROMIUM", "chromium"))
    if chromium is None:
        raise SystemExit("Chromium is not installed: `apt-get install chromium`, or name it by CHROMIUM=<program>")
    folder = Path(tempfile.mkdtemp())
    command = "train", "task=sentiment", "folder=outputs/sentiment/lora"
    lines = [line.rstrip() for line in gptask(folder, *command).splitlines()]
    excerpt = "\n".join([" ".join(["$ gptask", *command]), *lines]).strip()
    (IMAGES / "terminal.txt").write_text(excerpt + "\n", encoding="utf-8")
    gptask(folder, "train", "task=sentiment", "tuning=head", "folder=outputs/sentiment/head")
    page = folder / "report.html"
    gptask(folder, "report", "outputs/sentiment/lora", "outputs/sentiment/head", "--output", str(page))
    picture = IMAGES / "report.png"
    browser = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    size = f"--window-size={WIDTH},{HEIGHT}"
    subprocess.run([*browser, size, f"--screenshot={picture}", page.as_uri()], check=True, stderr=subprocess.DEVNULL)
    print(f"{picture} and {IMAGES / 'terminal.txt'}; the README's excerpt follows with: make docs-tables")


if __name__ == "__main__":
    main()
