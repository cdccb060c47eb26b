"""Errors a user can meet: one line each, naming the thing, its value, the rule and the remedy."""


class AudioCTError(Exception):
    """Base of every error that audio-ct raises for its users; the command line prints it and exits with status 2."""


class InputError(AudioCTError, ValueError):
    """A value given by the user breaks a rule: a recipe key, an option, an audio file's content."""


class MissingError(AudioCTError, FileNotFoundError):
    """A file or folder that the user named is not there."""


class DamagedError(AudioCTError, ValueError):
    """A file written by audio-ct is not what was written: truncated, changed, or of another format."""


class NotFiniteError(AudioCTError, ArithmeticError):
    """Training met too many losses or gradients in a row, a parameter or a validation that are not finite."""
