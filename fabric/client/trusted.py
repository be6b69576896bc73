"""`trust=True`: a result that the codec does not carry comes back as a pickle, which the caller's process loads.

A pickle can run any code of whoever wrote it, and that is the operator of the node, whatever the function returned. So
nothing implies it: a caller says it per call or per Executor, also towards the embedded fabric.
"""

import pickle
from typing import Any

import cloudpickle

from fabric.client.baggage import Wrapping
from fabric.wire.codec import CodecError, NotTransportable
from fabric.wire.coroutines import settled


class Pickling(Wrapping):
    """A function whose value the worker pickles: the pickle, then its out-of-band buffers."""

    def __call__(self, *args: Any, **kwargs: Any) -> list[bytes]:
        value = settled(self.function(*args, **kwargs))
        buffers: list[pickle.PickleBuffer] = []
        try:
            body = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        except Exception as error:  # noqa: BLE001 - what a value's own methods raise says why
            name = type(value).__qualname__
            raise NotTransportable("result", name, "return what can be", f"cannot be pickled ({error})") from None
        return [body, *(bytes(buffer.raw()) for buffer in buffers)]


def unpickle(answer: Any) -> Any:
    """The value of a `Pickling` function. Runs whatever code the pickle names.

    Raises:
        CodecError: it is no such answer, or cannot be loaded in this process; says why.
    """
    if not isinstance(answer, list) or not answer or not all(isinstance(piece, bytes) for piece in answer):
        raise CodecError("it was to be a pickle and is none; trust=True belongs to the call that starts the run")
    try:
        return pickle.loads(answer[0], buffers=[bytearray(piece) for piece in answer[1:]])  # noqa: S301 - trust=True
    except Exception as error:
        raise CodecError(f"{type(error).__name__}: {error}") from error
