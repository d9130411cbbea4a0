"""The file in memory against a real one: the same reads after the same random writes."""

import io
import random

from mocoembed.embed.sparse import SparseFile


def test_equals_bytes_io():
    numbers, ours, real = random.Random(0), SparseFile(), io.BytesIO()
    for _ in range(400):
        place, data = numbers.randrange(30000), numbers.randbytes(numbers.randrange(9000))
        for file in (ours, real):
            file.seek(place)
            file.write(data)
        place, length = numbers.randrange(40000), numbers.randrange(9000)
        ours.seek(place)
        real.seek(place)
        assert ours.read(length) == real.read(length)
        assert ours.tell() == real.tell()
        assert ours.seek(0, io.SEEK_END) == real.seek(0, io.SEEK_END)
    assert ours.part(100, 20000) == real.getvalue()[100:20000]


def test_what_was_not_written_is_zeros_and_takes_no_room():
    file = SparseFile()
    file.seek(1 << 40)
    file.write(b"end")
    assert file.part(1 << 39, (1 << 39) + 5) == bytes(5)
    assert file.part((1 << 40) - 2, (1 << 40) + 9) == b"\0\0end"
    assert len(file._pages) == 1
