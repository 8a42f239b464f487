"""The body of `/v1/chat/completions`: which fields are accepted, and with which values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .refusal import Refusal


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _only(allowed: float | bool, reason: str) -> AfterValidator:
    """Returns a validator that accepts one value."""

    def check(value: Any) -> Any:
        if value is not None and value != allowed:
            raise ValueError(f"{reason}: send {allowed} or leave it out")
        return value

    return AfterValidator(check)


_GREEDY = "answers are greedy"


class ImageUrl(_Strict):
    """Where the image is."""

    url: str = Field(description="data:image/...;base64,..., or https:// on a host that the server allows")
    detail: Annotated[str | None, Field(description="auto: the controllers choose")] = None

    @model_validator(mode="after")
    def _check_detail(self) -> ImageUrl:
        if self.detail not in (None, "auto"):
            raise ValueError("the budget decides on the image's detail: send auto or leave `detail` out")
        return self


class ImagePart(_Strict):
    """The image of the question."""

    type: Literal["image_url"]
    image_url: ImageUrl


class TextPart(_Strict):
    """Text of the question; several parts are joined by line breaks."""

    type: Literal["text"]
    text: str


class UserMessage(_Strict):
    """The question: one image and text, in any order."""

    role: Literal["user"]
    content: list[Annotated[ImagePart | TextPart, Field(discriminator="type")]] = Field(max_length=64)

    @field_validator("content", mode="before")
    @classmethod
    def _check_list(cls, content: Any) -> Any:
        if isinstance(content, str):
            raise ValueError("a question is about one image: send a list of an `image_url` part and `text` parts")
        return content

    @model_validator(mode="after")
    def _check_parts(self) -> UserMessage:
        images = sum(isinstance(part, ImagePart) for part in self.content)
        if images != 1:
            raise ValueError(f"a question is about exactly one image, and `content` has {images}")
        return self

    @property
    def image_url(self) -> str:
        return next(part.image_url.url for part in self.content if isinstance(part, ImagePart))

    @property
    def question(self) -> str:
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart)).strip()


class StreamOptions(_Strict):
    """What a stream contains."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = Field(None, description="ignored")


class ChatRequest(_Strict):
    """One question about one image, answered greedily. A field that is null counts as left out."""

    model: str | None = None
    messages: list[UserMessage] = Field(min_length=1, max_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    budget_ms: float | None = Field(None, description="latency budget in ms; the header x-knobctl-budget-ms precedes")
    task: str | None = Field(None, description="dataset whose prompt style is used")
    temperature: Annotated[float | None, _only(0, _GREEDY)] = None
    top_p: Annotated[float | None, _only(1, _GREEDY)] = None
    n: Annotated[int | None, _only(1, "a request gets one answer")] = None
    presence_penalty: Annotated[float | None, _only(0, _GREEDY)] = None
    frequency_penalty: Annotated[float | None, _only(0, _GREEDY)] = None
    logprobs: Annotated[bool | None, _only(False, "probabilities are not returned")] = None
    store: Annotated[bool | None, _only(False, "nothing is stored")] = None
    seed: int | None = Field(None, description="ignored: answers are greedy")
    user: str | None = Field(None, description="ignored")

    @model_validator(mode="after")
    def _check_together(self) -> ChatRequest:
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise ValueError("`max_tokens` and `max_completion_tokens` differ: send one of them")
        if self.stream_options is not None and not self.stream:
            raise ValueError("`stream_options` needs `stream`: true")
        return self

    @property
    def message(self) -> UserMessage:
        return self.messages[0]

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


def parse_chat(body: bytes) -> ChatRequest:
    """Returns the request. Raises Refusal with 400, which names the first field that is not accepted and why."""
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = _path(first["loc"])
        reason = (
            "is not supported" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        )
        message = f"`{param}`: {reason}." if param else f"{reason}."
        raise Refusal(400, message, param=param or None, code="invalid_field") from error


def check_question(question: str, max_chars: int) -> None:
    """Raises Refusal for an empty question, and for one that is too long to be worth tokenising."""
    param = "messages[0].content"
    if not question:
        raise Refusal(400, "the question is empty: send a part of type `text`.", param=param, code="empty_question")
    if len(question) > max_chars:
        raise Refusal(
            400,
            f"the question has {len(question):,} characters, and {max_chars:,} is the limit: shorten it.",
            param=param,
            code="question_too_long",
        )


def chosen_task(chat: ChatRequest, model_name: str, tasks: Mapping[str, int]) -> str:
    """Returns the task of the request. Raises Refusal for another model or task, or if it must be named."""
    if chat.model is not None and chat.model != model_name:
        raise Refusal(
            404,
            f"the model `{chat.model[:100]}` does not exist: this server has `{model_name}`.",
            param="model",
            code="model_not_found",
        )
    if chat.task is not None and chat.task in tasks:
        return chat.task
    if chat.task is None and len(tasks) == 1:
        return next(iter(tasks))
    problem = "`task` is missing" if chat.task is None else f"`task`: {chat.task[:100]!r} is unknown"
    raise Refusal(400, f"{problem}: send one of {', '.join(sorted(tasks))}.", param="task", code="invalid_field")


def _path(loc: tuple[int | str, ...]) -> str:
    """Returns a field's path, `messages[0].content[1].text`; pydantic's includes the type of a part after its index."""
    path = ""
    for index, name in enumerate(loc):
        if isinstance(name, int):
            path += f"[{name}]"
        elif not (index and isinstance(loc[index - 1], int) and loc[index - 2] == "content"):
            path += f".{name}" if path else name
    return path[:200]
