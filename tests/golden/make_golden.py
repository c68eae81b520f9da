"""Make the golden files beside this script with the writers of the real openai-whisper package.

Usage: pip install --no-deps --target FOLDER openai-whisper==20250625
       python tests/golden/make_golden.py FOLDER

Only the package's utils.py is run: it holds the writers and wants nothing but the standard library.
"""

import importlib.util
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
FORMATS = ("txt", "srt", "vtt", "tsv")
LAYOUTS = {
    "plain": {},
    "width": {"max_line_width": 20},
    "lines": {"max_line_width": 16, "max_line_count": 2},
    "line": {"max_line_width": 30, "max_line_count": 1},
    "few": {"max_words_per_line": 3},
    "highlight": {"highlight_words": True},
    "marked-lines": {"max_line_width": 16, "max_line_count": 2, "highlight_words": True},
}


def main(folder: Path) -> None:
    """Write whisper.{txt,srt,vtt,tsv}, the same for a recording without text, and words in each layout."""
    spec = importlib.util.spec_from_file_location("whisper_utils", folder / "whisper" / "utils.py")
    if spec is None or spec.loader is None:
        sys.exit(f"no openai-whisper in {folder}: pip install --no-deps --target {folder} openai-whisper==20250625")
    utils = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utils)
    segments = json.loads((HERE / "segments.json").read_text(encoding="utf-8"))
    for name, given in (("whisper", segments), ("silence", [])):
        for extension in FORMATS:
            utils.get_writer(extension, str(HERE))({"segments": given}, name)
    spoken = json.loads((HERE / "words.json").read_text(encoding="utf-8"))
    for name, options in LAYOUTS.items():
        for extension in ("srt", "vtt"):
            utils.get_writer(extension, str(HERE))({"segments": spoken}, f"words-{name}", options)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
