"""What goes wrong with weights."""


class WeightsError(Exception):
    """A weights file cannot be read, or does not hold what is asked for. One line."""


def first_line(error: BaseException) -> str:
    """An exception in at most 160 characters of one line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
