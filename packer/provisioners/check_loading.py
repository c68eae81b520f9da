"""Fail unless every strategy could load the model: what `load --json` wrote is the argument."""

from __future__ import annotations

import json
import sys
from pathlib import Path

strategies = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["strategies"]
failed = [f"{each['strategy']}: {each['reason']}" for each in strategies if each["facts"] is None]
if failed or len(strategies) < 3:
    sys.exit(f"not every strategy loads the model: {'; '.join(failed) or 'some were not tried'}")
print(f"{', '.join(each['strategy'] for each in strategies)}: all hear the same in the golden clip")
