"""Train: ``deepspeed engine/train.py --config configs/bedroom.json [key=value ...]``, on any number of ranks.

The same command goes on where it stopped. ``--dry-run`` says what would run and stops.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

# The launcher puts this file's folder first on the path, where our module names would hide others.
_HERE = Path(__file__).resolve().parent
if Path(sys.path[0]).resolve() == _HERE:
    sys.path[0] = str(_HERE.parent)

from engine import screen  # noqa: E402  (after the path is right)
from engine.errors import FAILURES, RankError, UsageError  # noqa: E402
from engine.processes import end_helpers  # noqa: E402

PATIENCE_SECONDS = 5.0


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; wrong usage exits with code 2."""
    parser = argparse.ArgumentParser(
        prog="engine/train.py", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--config", required=True, help="JSON file, such as configs/quickstart.json")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the effective config, sizes and memory, and stop"
    )
    parser.add_argument(
        "--local_rank", type=int, default=0, help=argparse.SUPPRESS
    )  # given by the launcher, which also sets LOCAL_RANK
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="override a key, such as train.batch_size=64"
    )
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str]) -> int:
    """Run and return the exit code: 0 done, 2 usage, 3 numerics, 4 checkpoint, 5 data, 6 ranks; where the run
    was asked to stop and saved, ``run.stop_code``.
    """
    options = parse(arguments)
    screen.quiet_libraries()
    try:
        demand_directory()
        from engine.config_file import load

        config = load(
            options.config, options.overrides
        )  # before torch is imported: a misspelt key is answered at once
        if options.dry_run:
            from engine.plan import show_plan

            show_plan(config)
        else:
            from engine.parallel import stop_ranks
            from engine.run import run

            stay = False
            try:
                done = run(config)
            except RankError:
                stay = True  # leaving a group whose members are gone can take for ever
                raise
            finally:
                if not stay:
                    stop_ranks()
            return 0 if done else config.run.stop_code
    except FAILURES as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def demand_directory() -> None:
    """Torch looks where it is when it is imported.

    Raises:
        UsageError: the working directory was deleted.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UsageError("the working directory does not exist any more; change to one that does") from None


def leave(code: int) -> NoReturn:
    """End this process, without waiting for threads that hang on a file system or on other ranks, or
    for processes that read.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    end_helpers()
    until = time.monotonic() + PATIENCE_SECONDS
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                os._exit(code)
    if code == RankError.exit_code:
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
