"""Failures of the work itself, each told to the user in one line: exit status 1."""


class WorkError(RuntimeError):
    """Something went wrong that is not the user's input; what is on disk stays usable."""
