"""Run a recipe as an experiment: `python -m recipes lego_800 -S drift.K=512 --queue`.

Its settings are checked, then `dvc exp run` takes over with one `-S` for each and all further
arguments. `make exp RECIPE=lego_800 ARGS="-S drift.K=512 --queue"` does the same.
"""

import os
import sys
from pathlib import Path

from recipes.overrides import command


def main() -> None:
    """Check, then become DVC; a fault ends in one line."""
    name, *arguments = sys.argv[1:] or [""]
    try:
        words = command(Path(__file__).parents[1], name, arguments)
    except ValueError as error:
        sys.exit(f"error: {error}")
    # DVC and the stages that it starts are those of this environment, activated or not.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    os.execvp(words[0], words)


if __name__ == "__main__":
    main()
