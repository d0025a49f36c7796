"""A forked process as a script would run in it: for test_faults.py and test_distributed.py."""

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from common.cli import one_line, prepare_output


def run_to_the_end(function: Callable[[], object], output: int, error: int) -> NoReturn:
    """Calls `function` and ends this process with the code of a script: 0, that of a SystemExit, or 99 for
    what nobody has caught. What is printed goes to the open files `output` and `error`."""
    code = 99
    try:
        os.dup2(output, 1)
        os.dup2(error, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        prepare_output()
        with one_line():
            function()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
