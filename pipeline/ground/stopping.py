"""A request to stop, such as a cluster's warning before it takes a machine away: training saves a checkpoint and ends."""

import threading

from pipeline.ground.errors import UserError

asked = threading.Event()  # set by a signal's handler, in any rank; seen between two steps


class StoppedError(UserError):
    """The training ended because it was asked to. All ranks raise it, after a checkpoint was written."""
