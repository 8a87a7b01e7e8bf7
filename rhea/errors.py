"""The one error that means "your input, not our bug": the command line prints it as a single line and exits with 2."""


class InputError(ValueError):
    """Bad input from a user: the message names the offending value and says what is allowed."""
