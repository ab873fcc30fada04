"""The train stage as in `ours`, and then its loop again in the same process, with nothing recorded and no recorder.

    python -m benchmarks.contenders.unrecorded PARAMS DATA MODEL REPORTS

Two processes on the same machine differ by more than recording may cost. `recorded_s` is the stage's loop, `loop_s` the
one after it: the same net, data and params, its rows thrown away, no checkpoints.
"""

from __future__ import annotations

import sys

from benchmarks.contenders.ours import run
from benchmarks.contenders.stopwatch import say


def main() -> None:
    figures, unrecorded = run(sys.argv[1:])
    kept = {name: figures[name] for name in ("waited_s", "recorder_s")}
    say(recorded_s=figures["loop_s"], loop_s=unrecorded(), **kept)


if __name__ == "__main__":
    main()
