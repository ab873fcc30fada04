"""Serve an ONNX file written by `classifier export`, without the project, as in a container.

python -m classifier.serving MODEL.onnx [--host 127.0.0.1] [--port 8000]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from classifier.errors import UserError
from classifier.serving.server import serve


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m classifier.serving", description="Serve an ONNX file.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    try:
        serve(options.model, options.host, options.port)
    except KeyboardInterrupt:
        sys.exit(130)
    except (UserError, OSError) as error:
        sys.exit(f"serve: {error}")


if __name__ == "__main__":
    main()
