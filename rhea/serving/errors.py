"""The one error that leaves the server: a status, and the fields of OpenAI's error object."""


class ApiError(Exception):
    """A request that is answered with an error: what is wrong, and what to do, in one sentence of our own."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        kind: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.kind = kind
        """OpenAI's ``type``."""
