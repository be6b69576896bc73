"""OpenAI's shapes of requests, answers and errors, and their translation to an endpoint's methods. No IO.

An endpoint that has the methods of `workloads.ChatModel` (`chat`, `complete`) or `workloads.Embedder` (`embed`) gets
these routes; who calls them is checked by the router.
"""

import base64
import struct
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_CHOICES = 1


class Refused(Exception):
    """A request that is answered by an error of OpenAI's format."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class _In(BaseModel):
    """Members that OpenAI knows and we do not use are passed over, as its clients send some by themselves.

    A member that is null is one that was left out: several clients write all that they know.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        return {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given


class StreamOptions(_In):
    include_usage: bool = Field(default=False, strict=True)


class _Wishes(_In):
    model: str
    max_tokens: int | None = Field(default=None, ge=1, strict=True)
    temperature: float = Field(default=1.0, ge=0, le=2, strict=True)
    top_p: float = Field(default=1.0, gt=0, le=1, strict=True)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63, strict=True)
    stop: str | list[str] | None = None
    stream: bool = Field(default=False, strict=True)
    stream_options: StreamOptions | None = None
    n: int = Field(default=1, strict=True)

    @property
    def with_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self) -> dict[str, Any]:
        """Keyword arguments of `chat` and `complete`.

        Raises:
            Refused: something that is not done here.
        """
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if self.n != MAX_CHOICES:
            raise Refused(400, f"n={self.n} is not done here; ask {self.n} times", param="n", code="unsupported_value")
        if len(stop) > 4 or not all(stop):
            raise Refused(400, "stop is up to 4 texts, none of them empty", param="stop", code="invalid_value")
        if self.stream_options is not None and not self.stream:
            raise Refused(400, "stream_options is for stream=true", param="stream_options", code="invalid_value")
        return {
            "max_tokens": self.limit(),
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "stop": tuple(stop),
        }

    def limit(self) -> int | None:
        return self.max_tokens


class TextPart(_In):
    type: Literal["text"]
    text: str


class Message(_In):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] = ""

    def plain(self) -> dict[str, str]:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatIn(_Wishes):
    messages: list[Message] = Field(min_length=1, max_length=10_000)
    max_completion_tokens: int | None = Field(default=None, ge=1, strict=True)

    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionIn(_Wishes):
    prompt: str | list[str]

    def text(self) -> str:
        """Raises Refused for more than one prompt."""
        if isinstance(self.prompt, str):
            return self.prompt
        if len(self.prompt) != 1:
            raise Refused(400, f"{len(self.prompt)} prompts; one is allowed", param="prompt", code="unsupported_value")
        return self.prompt[0]

    def limit(self) -> int | None:
        return self.max_tokens or 16


Text = Annotated[str, Field(min_length=1)]


class EmbeddingIn(_In):
    model: str
    input: Text | list[Text] = Field(min_length=1)
    encoding_format: Literal["float", "base64"] = "float"

    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


def usage(end: dict[str, Any]) -> dict[str, int]:
    prompt, completion = int(end.get("prompt_tokens", 0)), int(end.get("completion_tokens", 0))
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


class Writer:
    """Answers of one request. `chat` or a plain completion."""

    def __init__(self, name: str, model: str, created: int, *, chat: bool) -> None:
        self._common = {"id": name, "created": created, "model": model}
        self._chat = chat
        self._begun = False

    def whole(self, text: str, end: dict[str, Any]) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        choice = {"index": 0, **said, "finish_reason": end.get("finish_reason"), "logprobs": None}
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._common, "object": kind, "choices": [choice], "usage": usage(end)}

    def chunk(self, piece: dict[str, Any]) -> dict[str, Any]:
        text, reason = piece.get("text", ""), piece.get("finish_reason")
        if self._chat:
            delta = {"content": text} if reason is None else {}
            said: dict[str, Any] = {"delta": delta if self._begun else {"role": "assistant", **delta}}
        else:
            said = {"text": text}
        self._begun = True
        return self._chunk([{"index": 0, **said, "finish_reason": reason, "logprobs": None}])

    def usage_chunk(self, end: dict[str, Any]) -> dict[str, Any]:
        return {**self._chunk([]), "usage": usage(end)}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            **self._common,
            "object": "chat.completion.chunk" if self._chat else "text_completion",
            "choices": choices,
        }


def embeddings(answer: dict[str, Any], asked: EmbeddingIn) -> dict[str, Any]:
    data = [
        {"object": "embedding", "index": at, "embedding": _vector(vector, asked.encoding_format)}
        for at, vector in enumerate(answer["vectors"])
    ]
    spent = int(answer.get("prompt_tokens", 0))
    usage_ = {"prompt_tokens": spent, "total_tokens": spent}
    return {"object": "list", "data": data, "model": asked.model, "usage": usage_}


def _vector(vector: list[float], form: str) -> list[float] | str:
    return vector if form == "float" else base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
