"""The one exception for a user's mistake, in a module that imports nothing."""


class InputError(ValueError):
    """A mistake in what the user gave (flags, files, data): one line that says what is wrong and what to do.

    Scripts print it without a traceback and exit with status 2.
    """
