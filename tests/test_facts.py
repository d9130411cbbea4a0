"""Reasons of images that cannot be read, in words for people and by class for the file."""

import pytest
from PIL import UnidentifiedImageError

from mocoembed.data.facts import Failure
from mocoembed.errors import UnreadableImage


@pytest.mark.parametrize(("error", "stored", "said"), [
    (UnreadableImage("the file is empty"), ("UnreadableImage", "the file is empty"), "the file is empty"),
    (UnidentifiedImageError("cannot identify image file <_io.BytesIO object at 0x7f01>"),
     ("UnidentifiedImageError", "cannot identify image file"), "cannot identify image file"),
    (PermissionError(13, "Permission denied", "a.jpg"), ("PermissionError", "Permission denied"), "Permission denied"),
    (KeyError(0), ("KeyError", "0"), "the decoder failed (KeyError: 0)"),
    (MemoryError(), ("MemoryError", "MemoryError"), "the decoder failed (MemoryError)"),
])
def test_people_read_the_reason_and_the_file_keeps_the_class(error, stored, said):
    failure = Failure.of(3, error)
    assert (failure.row, failure.error, failure.reason, failure.said) == (3, *stored, said)
    assert failure.told(b"a.jpg", "left out") == f"unreadable, left out: 'a.jpg': {said}"
