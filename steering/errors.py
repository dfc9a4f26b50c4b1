"""The exceptions that a caller can act on.

    AllEarsError
    ├── AudioError          the audio can't be used: not audio, damaged, empty, not finite
    │   ├── AudioTooLarge   the audio is fine, but larger than this deployment allows
    │   └── UnsupportedAudio  the audio is of a format or codec that is not read here
    ├── RequestError        a field of the request is wrong; `param` names it
    ├── ModelError          the model can't be loaded, or is not one we can steer
    ├── ProfileError        the listening profile is damaged, or belongs to another model
    ├── DataError           a data file of items is wrong
    └── EvidenceError       what was recorded of items can't be used, or not be kept

A message says what is wrong, the value seen, what is allowed, and what to do. Our own bugs are
assertions, not these.
"""


class AllEarsError(Exception):
    """The root: catch it to catch every error a caller can act on."""


class AudioError(AllEarsError):
    """The audio can't be used: not audio, damaged, empty or not finite.

    `param` is its field, where a request has one for it.
    """

    param: str | None = None


class AudioTooLarge(AudioError):
    """The audio is over a limit on bytes or seconds."""


class UnsupportedAudio(AudioError):
    """The audio is of a format or codec that this installation does not read."""


class RequestError(AllEarsError):
    """A field of the request is wrong; `param` is its name, or None for the whole request."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.param = param

    def __str__(self) -> str:
        return str(self.args[0])


class ModelError(AllEarsError):
    """The model can't be loaded, or is not of a family we can steer."""


class ProfileError(AllEarsError):
    """The listening profile is damaged, or was made for another model."""


class DataError(AllEarsError):
    """A file of items does not follow its schema."""


class EvidenceError(AllEarsError):
    """The evidence of items is another calibration's, damaged, in use, or has no room."""
