"""How Phantom refuses a request."""

from __future__ import annotations


class Refusal(Exception):
    """A refusal: the HTTP status, its reason phrase, which Phantom uses for the error's code, and
    one line of plain text."""

    def __init__(self, status: int, code: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.text = text


def missing(field: str) -> Refusal:
    """The refusal of a request without a field that it must have."""
    return Refusal(400, "MissingParameter", f"The request must contain the parameter {field}.")


def invalid(text: str) -> Refusal:
    """The refusal of a value, or of a name that is taken."""
    return Refusal(400, "InvalidParameterValue", text)


def broken(text: str) -> Refusal:
    """What the real service answers where it fails by a defect of its own."""
    return Refusal(500, "InternalServerError", text)
