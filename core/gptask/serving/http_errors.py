"""Errors as answers, in the format of OpenAI's API."""

from __future__ import annotations

from fastapi.responses import JSONResponse


class ApiError(Exception):
    """An answer with an error status. ``param`` names the field of the request that is wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        kind: str = "invalid_request_error",
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.kind = status, message, param, kind
        self.code, self.headers = code, headers or {}

    def response(self, request_id: str) -> JSONResponse:
        """The answer."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return JSONResponse({"error": error | {"request_id": request_id}}, self.status, headers=self.headers)
