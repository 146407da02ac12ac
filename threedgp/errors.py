"""Errors that a user can cause. The command line shows their message without a traceback."""


class ThreeDGPError(Exception):
    """Bad input or a failed step: the message says what is wrong, where, and what to do. Exit code 1."""

    exit_code = 1


class UsageError(ThreeDGPError):
    """The command, option or profile asks for something impossible. Exit code 2."""

    exit_code = 2


class ConfigError(UsageError):
    """A profile has an unknown key, a wrong type or an impossible combination."""


class DataError(ThreeDGPError):
    """A data set, image or depth map is missing, broken or inconsistent."""


class NotFiniteError(DataError):
    """A picture, depth map or feature of a model is NaN or infinite: the model has most likely diverged."""


class WeightsError(UsageError):
    """Pretrained weights are missing or fail their checksum."""


class CheckpointError(ThreeDGPError):
    """A checkpoint is missing, damaged, from another profile or from a newer version."""


class DivergenceError(ThreeDGPError):
    """Training diverged again and again. Exit code 3, so that a script can tell it from other failures."""

    exit_code = 3


class UnsafeFileError(CheckpointError):
    """A file asks for code to be executed while it is read, and is refused."""


class MissingExtraError(UsageError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(f"{purpose} needs the package '{package}'. Install it with: pip install 'threedgp[{extra}]'")


def recreate(kind: str, text: str) -> ThreeDGPError:
    """An error that another process has told of by the name of its class and its message."""
    known = globals().get(kind)
    kind_of_error = known if isinstance(known, type) and issubclass(known, ThreeDGPError) else ThreeDGPError
    error = kind_of_error.__new__(kind_of_error)
    Exception.__init__(error, text)
    return error
