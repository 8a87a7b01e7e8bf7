"""Errors that mean "your input, not our bug": the command line prints them as a single line and exits with 2."""


class InputError(ValueError):
    """Bad input from a user: the message names the offending value and says what is allowed."""


class BusyError(RuntimeError):
    """A bound on waiting work is reached: nothing is wrong with the request, later it may be taken."""
