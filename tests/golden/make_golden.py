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


def main(folder: Path) -> None:
    """Write whisper.{txt,srt,vtt,tsv} and the same for a recording without text."""
    spec = importlib.util.spec_from_file_location("whisper_utils", folder / "whisper" / "utils.py")
    if spec is None or spec.loader is None:
        sys.exit(f"no openai-whisper in {folder}: pip install --no-deps --target {folder} openai-whisper==20250625")
    utils = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utils)
    segments = json.loads((HERE / "segments.json").read_text(encoding="utf-8"))
    for name, given in (("whisper", segments), ("silence", [])):
        for extension in FORMATS:
            utils.get_writer(extension, str(HERE))({"segments": given}, name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
