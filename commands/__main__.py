"""`lenet NAME ...` is `python -m commands.NAME ...`, from the project's root.

Commands: {names}.
Each says what it does with --help.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def main() -> None:
    """Run the module that the first argument names as if it had been named to Python."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py") if path.stem != "application")
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print((__doc__ or "").format(names=", ".join(names)).strip())
    elif name in names:
        del sys.argv[0]
        sys.path.insert(0, str(Path.cwd()))  # the project whose root this is, as `python -m` has it
        runpy.run_module(f"commands.{name}", run_name="__main__", alter_sys=True)
    else:
        sys.exit(f"lenet: {name!r} is not a command; allowed are {', '.join(names)}")


if __name__ == "__main__":
    main()
