"""Files of a collection that are not listed as images, counted by suffix."""

import os
import re
from collections import Counter

from mocoembed.data.formats import what_reads

HIDDEN, NO_SUFFIX = "hidden", "without a suffix"
NAMED = 6  # suffixes, the most frequent first


def suffix_of(name: bytes) -> str:
    """What a skipped file is counted as: its suffix in lower case (`.mov`), or one of the words above."""
    base = os.path.basename(name)
    if base.startswith(b"."):
        return HIDDEN
    suffix = os.path.splitext(base)[1].lower().decode("ascii", "replace")
    return suffix if re.fullmatch(r"\.(?=.*[a-z])[a-z0-9]{1,8}", suffix) else NO_SUFFIX


def skipped_text(skipped: dict[str, int]) -> str:
    """`skipped 312 files: 240 .heic (pip install 'mocoembed[heif]'), 60 .mov, 12 .txt`; hidden ones come last."""
    total, counts = sum(skipped.values()), Counter(skipped)
    hidden = counts.pop(HIDDEN, 0)
    kinds = sorted(counts.items(), key=lambda kind: (-kind[1], kind[0]))
    unread = [kind for kind in kinds if what_reads(kind[0])]
    named = [kind for kind in kinds if kind in {*unread, *kinds[:NAMED]}]
    parts = [f"{count:,} {kind}" + (f" ({what_reads(kind)})" if kind in dict(unread) else "") for kind, count in named]
    if others := sum(count for kind, count in kinds if (kind, count) not in named):
        parts.append(f"{others:,} other{'s' * (others != 1)}")
    if hidden:
        parts.append(f"{hidden:,} hidden")
    return f"skipped {total:,} file{'s' * (total != 1)}: {', '.join(parts)}"
