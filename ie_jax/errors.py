"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, and what to do about it.

    The commands print it to standard error and exit with status 2.
    """
