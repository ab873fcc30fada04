"""The train stage as in `ours`, and in the same process its loop before and after, with nothing recorded.

    python -m benchmarks.contenders.unrecorded PARAMS DATA MODEL REPORTS

Two processes on the same machine differ by more than recording may cost. `loop_s` is the stage's loop, `unrecorded_s`
the mean of the two around it: the same net, data and params, rows thrown away, no checkpoints, no progress, the
recorder at rest. Of the stage's loop `waited_s` goes into reports, progress and checkpoints (the copies of their
tensors too), as far as the loop waits for them; `threads_s` and `recorder_s` are what the threads that write
checkpoints and draw the progress bar, and the recorder's process, use of the processor meanwhile.
"""

from __future__ import annotations

import sys

from benchmarks.contenders.ours import run
from benchmarks.contenders.stopwatch import say

FIGURES = ("loop_s", "unrecorded_s", "waited_s", "threads_s", "recorder_s")


def main() -> None:
    figures = run(sys.argv[1:], with_unrecorded=True)
    say(**{name: figures[name] for name in FIGURES})


if __name__ == "__main__":
    main()
