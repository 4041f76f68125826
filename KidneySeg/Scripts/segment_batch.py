"""The kidneys in every CT of a folder or a list, without anybody at the screen.

In 3D Slicer:

    Slicer --no-splash --no-main-window --python-script segment_batch.py
        --input FOLDER_OR_CSV --output FOLDER [--mrb] [--reference FOLDER] [...]

and the same in plain Python, where --mrb needs the package slicer-core:

    python segment_batch.py --input FOLDER_OR_CSV --output FOLDER [...]

`--help` (in plain Python, as Slicer has one of its own) shows every option.
"""

import sys
import traceback
from pathlib import Path


def main():
    """Run the batch; its exit code."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    # Slicer stays open when a script ends, also by an exception: each way out must give a code.
    try:
        from KidneySegLib.batch import main as run

        return run(sys.argv[1:])
    except Exception:
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    sys.exit(main())
