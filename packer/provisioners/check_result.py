"""Fail unless a result is whole and no fallback was needed for it: the result's json is the argument."""

from __future__ import annotations

import json
import sys
from pathlib import Path

result = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
if result["status"] != "COMPLETED" or not result["text"].strip():
    sys.exit(f"the recording was not transcribed: {result['error']}")
if result["load"]["strategy"] != "gpu_state" or result["load"]["skipped"]:
    sys.exit(f"the model came by a fallback: {result['load']}")
print(f"{len(result['text'].split())} words, the model loaded in {result['load']['seconds']:.2f} s")
