"""Train: ``deepspeed engine/train.py --config configs/bedroom.json [key=value ...]``, on any number of ranks.

The same command goes on where it stopped. ``--dry-run`` says what would run and stops.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# The launcher puts this file's folder first on the path, where our module names would hide others.
_HERE = Path(__file__).resolve().parent
if Path(sys.path[0]).resolve() == _HERE:
    sys.path[0] = str(_HERE.parent)

from engine import screen  # noqa: E402  (after the path is right)
from engine.errors import CheckpointError, DataError, NumericsError, UsageError  # noqa: E402


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
    """Run and return the exit code: 0 done or saved on request, 2 usage, 3 numerics, 4 checkpoint, 5 data."""
    options = parse(arguments)
    screen.quiet_libraries()
    try:
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

            try:
                run(config)
            finally:
                stop_ranks()
    except (UsageError, CheckpointError, DataError, NumericsError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
