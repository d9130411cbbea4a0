"""The exceptions that mocoembed raises on purpose.

    MocoembedError              exit status 1: the work failed
    ├── UsageError              exit status 2: the call was wrong (a value, a path, a combination)
    ├── CollectionError         images: none found, too many unreadable
    ├── FormatError             a file is not what it should be, is damaged or is of a newer version
    ├── MismatchError           two files do not belong together (encoder, features, stale index)
    ├── LockedError             another process is writing the same thing
    ├── TrainingError           pretraining cannot go on (a loss or weight that is not finite)
    ├── ProcessError            one of several processes died, hangs or has lost the others
    └── Interrupted             SIGINT or SIGTERM, with everything saved: exit status 128 + signal

A message gives the value that was wrong, what is allowed and the next command to type, in one or two lines.
"""


class MocoembedError(Exception):
    """Base of all errors raised on purpose; `status` is the exit status of the command line."""

    status = 1
    quiet = False
    """Whether another process prints it."""


class UsageError(MocoembedError):
    """The call was wrong: an option's value, a missing path, options that exclude each other."""

    status = 2


class CollectionError(MocoembedError):
    """The images cannot be used: none were found or none could be read."""


class FormatError(MocoembedError):
    """A file is not of the expected kind, is damaged, or has a newer format version."""


class MismatchError(MocoembedError):
    """Two files do not belong together; the message names both sides."""


class LockedError(MocoembedError):
    """Another process holds the lock; the message names it."""


class TrainingError(MocoembedError):
    """Pretraining cannot go on, with advice in the message."""


class ProcessError(MocoembedError):
    """One of several processes died, hangs or has lost the others; the message names it."""


class Interrupted(MocoembedError):
    """A signal asked to stop; what was done is saved and the message says how to go on."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message, signal_number)
        self.status = 128 + signal_number

    def __str__(self):
        return self.args[0]


class UnreadableImage(Exception):
    """An image that the rules of `data/decode.py` refuse. It costs this one image, and never ends a command."""
