"""What the command line does about the noise of the libraries below it. A library import touches none of this."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def silenced(active: bool = True) -> Iterator[None]:
    """Keep what C++ code and progress bars write to stderr off the screen; shown after all if an error leaves."""
    if not active:
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as buffer:
        os.dup2(buffer.fileno(), 2)
        try:
            yield
        except Exception:
            sys.stderr.flush()
            buffer.seek(0)
            os.write(kept, buffer.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


def load_keras(*, debug: bool = False) -> None:
    """Import Keras, and with it TensorFlow, without their start-up messages."""
    if not debug:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with silenced(not debug):
        import keras

        if keras.backend.backend() == "tensorflow":
            import tensorflow

            if not debug:
                tensorflow.get_logger().setLevel("ERROR")
