"""The train stage as in `ours`; the same process runs its loop without recording before and after it.

    python -m benchmarks.contenders.unrecorded PARAMS DATA PRETRAINED MODEL REPORTS

A single process is used because two processes differ by more than the cost of recording. `loop_s` is the stage's loop.
`unrecorded_s` is the mean of the other two: the same network, data and params, with rows discarded, no checkpoints, no
progress and a suspended recorder. `waited_s` is the part of the stage's loop that waits for reports, progress and
checkpoints, including the copies of their tensors. `threads_s` and `recorder_s` are the CPU time of the threads that
write checkpoints and draw progress, and of the recorder's process.
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
