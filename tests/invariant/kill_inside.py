"""A script of ours that dies inside of what it writes. Usage:

    KILL_AT=FOLDER:COUNT python -m ross3d.tests.invariant.kill_inside SCRIPT [ARGUMENT ...]

The process and its workers are killed at the COUNT-th change of files in folders called FOLDER. Without KILL_AT
nothing differs from `python SCRIPT ...`.
"""

import os
import runpy
import signal
import sys
from pathlib import Path


# Events of the interpreter that change a file or a folder; safetensors and torch.save write without one.
CHANGES = ("open", "os.mkdir", "os.remove", "os.rename", "shutil.rmtree")


def kill_inside_write() -> None:
    """From here on the COUNT-th change of files in FOLDER is not made: SIGKILL comes instead."""
    if "KILL_AT" not in os.environ:
        return
    folder, count = os.environ["KILL_AT"].split(":")
    changes = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal changes
        is_write = event in CHANGES and (event != "open" or set(arguments[1] or "r") & set("wax"))
        if is_write and folder in Path(str(arguments[0])).parts:
            changes += 1
            if changes == int(count):
                os.killpg(0, signal.SIGKILL)

    sys.addaudithook(watch)


if __name__ == "__main__":
    kill_inside_write()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
