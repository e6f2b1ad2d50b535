"""Errors that end a command with one line and an exit code of their own."""


class UsageError(Exception):
    """The user asked for something impossible: the message says what is wrong, where, and what to do (exit
    code 2).
    """

    exit_code = 2


class CheckpointError(Exception):
    """A checkpoint is missing, damaged or belongs to another run (exit code 4)."""

    exit_code = 4


class DataError(Exception):
    """The data set cannot be read (exit code 5)."""

    exit_code = 5


class NumericsError(Exception):
    """Training left the finite numbers (exit code 3)."""

    exit_code = 3


class RankError(Exception):
    """A rank is lost, hangs or computes something else than the others (exit code 6)."""

    exit_code = 6


FAILURES = (UsageError, NumericsError, CheckpointError, DataError, RankError)
