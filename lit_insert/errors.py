"""The one exception that users meet for a mistake in their input."""


class InputError(ValueError):
    """Bad input: a file, a key or a value that the user can mend.

    The message is one line that names the culprit and the mend. The command lines print it as
    ``error: <message>`` and exit with status 2, without a traceback.
    """
