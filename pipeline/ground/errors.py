"""What a user can mend: a stage prints it as one line and exits with status 2. Everything else is a fault and keeps its traceback."""

import errno
import os

# What a disk, a quota, rights or a path's own shape refuse; ENOENT is missing: who reads a file says how to get it back.
MENDABLE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM}
    | {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.ESTALE}
)
MEMORY = (
    "out of GPU memory: for training raise train.accumulate, lower train.batch_size or take a smaller crop; "
    "for an evaluation set evaluate.mode to slide or name smaller scales"
)


class UserError(ValueError):
    """What a user can mend: its message is one line that names the file, key or image and the way out."""


class BusyError(UserError):
    """Another process holds the lock: it may be waited for."""


def explained(error: OSError, action: str) -> UserError:
    """The one line for `action` ("cannot write x") that the system refused."""
    return UserError(f"{action}: {os.strerror(error.errno) if error.errno else error}")


def refusal(error: BaseException) -> OSError | None:
    """The mendable OSError that `error` is or came from: torch.save turns a full disk into a RuntimeError of its own."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        if isinstance(cause, OSError) and cause.errno in MENDABLE:
            return cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


def words(error: BaseException) -> str | None:
    """The line that tells a user what to mend; None for a fault of the code."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in MENDABLE:
        return str(explained(error, f"cannot read or write {error.filename or 'a file'}"))
    # By its name, for torch is slow to import; CUDA itself says it with other classes.
    if type(error).__name__ == "OutOfMemoryError" or (isinstance(error, RuntimeError) and "CUDA error: out of memory" in str(error)):
        return MEMORY
    return None
