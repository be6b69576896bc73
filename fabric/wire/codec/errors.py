"""The two ways in which a value does not travel.

NotTransportable  the sender's value has no place in the format: raised on the worker, names the path
CodecError        what was received is not what a sender of ours writes: raised before anything is built from it
"""

MAX_SHOWN = 120


class NotTransportable(TypeError):
    """A value that the codec does not carry.

    Attributes:
        path: where it was found, as one would write it in Python: ``result["model"][0]``.
        type_name: its class.
        hint: what to do instead; may be empty.
    """

    def __init__(self, path: str, type_name: str, hint: str, why: str = "is not transportable") -> None:
        self.path = path
        self.type_name = type_name
        self.hint = hint
        super().__init__(f"{shown(path)}: {type_name} {why}" + (f"; {hint}" if hint else ""))


def shown(path: str) -> str:
    """A path for a person: of one through very many levels both ends."""
    return path if len(path) <= MAX_SHOWN else f"{path[: MAX_SHOWN // 2]}…{path[-MAX_SHOWN // 2 :]}"


class CodecError(ValueError):
    """Bytes that are malformed, exceed a limit, or need a library that is not installed here."""
