"""Warnings of decoders -> nothing, for a block, in any number of threads at once."""

import threading
import warnings
from typing import Any


class _WithoutWarnings:
    """Silences warnings in the block.

    `warnings.catch_warnings` puts back what it found: in several threads that may be what another one has set, and all
    warnings of the process stay silenced. Here the first thread to come in silences them, the last to leave puts back
    what the first has found.
    """

    def __init__(self) -> None:
        self.lock, self.inside, self.found = threading.Lock(), 0, warnings.catch_warnings()

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                self.found = warnings.catch_warnings()
                self.found.__enter__()
                warnings.simplefilter("ignore")

    def __exit__(self, *_: Any) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                self.found.__exit__(None, None, None)


without_warnings = _WithoutWarnings()
