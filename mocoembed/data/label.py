"""What a file says of an image -> its label: one rule for tables, lists of JSON and tar shards."""

import json

from mocoembed.errors import FormatError

SHOWN = 60  # characters of a wrong label in a message


def given_label(value: object, where: str) -> str | None:
    """The label that a value means, without blanks around it: text or a whole number; empty text and `None` mean none.

    Raises `FormatError`, which begins with `where`, for anything else: true, 0.5, a list, an object, a NUL byte.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        shown = json.dumps(value)
        shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
        raise FormatError(f"{where}: the label is {shown}; it must be text, a whole number or null. `embed --labels "
                          "none` ignores all labels.")
    text = str(value).removeprefix("\ufeff").strip()
    if "\0" in text:
        raise FormatError(f"{where}: a label with a NUL byte in it.")
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") or None
    except UnicodeEncodeError as error:
        raise FormatError(f"{where}: {text!r} is not a valid label.") from error
