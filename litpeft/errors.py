"""Errors that are the user's to mend: one sentence that names the option or file and says what to do."""


class UserError(Exception):
    """Something that the user gave cannot be used.

    The command line prints the message as one line without a traceback and exits with code 2. The message names the
    option or the file, says what is wrong with it, and what to do.
    """
