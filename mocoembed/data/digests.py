"""Finding images with the same bytes by their SHA-256, in arrays that cost 16 bytes an image beside the digests."""

import numpy as np


class DigestTable:
    """Rows by digest: `find` gives the first row that has one."""

    def __init__(self, digests: np.ndarray):
        """digests: (K,) of 32 bytes each (dtype V32)."""
        self.digests = digests
        heads = np.ascontiguousarray(digests).view(np.uint8).reshape(-1, 32)[:, :8].copy().view(np.uint64).ravel()
        self.rows = np.argsort(heads, kind="stable")
        self.heads = heads[self.rows]

    def __len__(self):
        return len(self.rows)

    def find(self, digest: bytes) -> int:
        """The first row with that digest, or -1."""
        head = np.frombuffer(digest, np.uint64, 1)[0]
        first = np.searchsorted(self.heads, head)
        while first < len(self.heads) and self.heads[first] == head:
            row = int(self.rows[first])
            if self.digests[row].tobytes() == digest:
                return row
            first += 1
        return -1
