"""Record and replay: what a guest does to a VDEV, kept; and done again to its model, without a VM.

While it is recorded a VDEV does one thing at a time (``stepper``): its sweeps and its event loop
are stepped, its clock stands still meanwhile, and C gets the guest's memory page by page. So the
same model does the same when it is given the same again. docs/recording.md says what is kept.
"""

from vdcm.recording.recorder import SIZE_LIMIT, Recording, end, recordings, start
from vdcm.recording.replay import Outcome, replay
from vdcm.recording.window import Difference

__all__ = [
    "SIZE_LIMIT",
    "Difference",
    "Outcome",
    "Recording",
    "end",
    "recordings",
    "replay",
    "start",
]
