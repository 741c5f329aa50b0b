"""The script `toolkit`. Commands take a moment to import; Ctrl-C ends that in a message, too.

On a device, `--device` elsewhere may have started us: then we end with what did.
"""

from __future__ import annotations

import os
import sys

# Of Ctrl-C, of which no command said more.
MESSAGE, REMEDY = "stopped by Ctrl-C", "Nothing that was there before has changed."
EXIT_CODE = 130  # 128 and the number of SIGINT, as shells have it


def main() -> None:
    try:
        from field.held import hold

        hold()
        from toolkit.cli import main as run
    except KeyboardInterrupt:
        os.write(2, f"error: {MESSAGE}\n{REMEDY}\n".encode())
        sys.exit(EXIT_CODE)
    run()


if __name__ == "__main__":
    main()
