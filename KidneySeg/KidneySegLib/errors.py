"""What can go wrong on the walk, each kind with the exit code the command line gives it.

A message is one sentence a clinician can act on: what is wrong, with which file, what to do.
"""

from __future__ import annotations


class KidneySegError(Exception):
    """Base of every failure that is reported as one line instead of a traceback."""

    exit_code = 1


class UsageError(KidneySegError):
    """The options contradict each other or name something that does not exist."""

    exit_code = 2


class InputError(KidneySegError):
    """A volume, label map or folder that cannot be used as it is."""

    exit_code = 3


class ModelError(KidneySegError):
    """A model folder that is missing, incomplete or not for this version."""

    exit_code = 4


class Cancelled(KidneySegError):
    """The user stopped the run; nothing was written."""

    exit_code = 130
