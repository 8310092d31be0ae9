"""What the client gets instead of an answer, as exceptions."""

from schemas.errors import SHAPES, Code


class Refusal(Exception):
    """The request is not served. `missing_nano`: money (nano-USD) that it lacked to fit;
    `retry_after_s`: seconds after which it may fit, when that is known."""

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        param: str | None = None,
        missing_nano: int = 0,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.missing_nano = missing_nano
        self.retry_after_s = retry_after_s

    @property
    def status(self) -> int:
        """The HTTP status of `code`."""
        return SHAPES[self.code].status

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class InvalidRequest(Refusal):
    """The body is not a request of its dialect. `param` is the JSON path of the wrong field,
    such as `messages[0].role`, or None when the body as a whole is wrong."""

    def __init__(
        self, message: str, *, param: str | None = None, code: Code = Code.INVALID_PARAM
    ) -> None:
        super().__init__(code, message, param=param)
