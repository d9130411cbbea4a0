"""Notes for people: `note(text)` tells one, and every function that takes a `note` can do without."""


def say_nothing(text: str):
    """The `note` of those who want none."""


def counted(count: int, noun: str) -> str:
    """`1 query`, `2 queries`."""
    return f"{count} {noun if count == 1 else noun[:-1] + 'ies' if noun.endswith('y') else noun + 's'}"
