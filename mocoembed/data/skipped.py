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
    kinds = sorted(counts, key=lambda kind: (-counts[kind], kind))
    groups: dict[str, list[str]] = {}  # what is said of some kinds (of one without a word: itself) -> these
    for place, kind in enumerate(kinds):
        if what_reads(kind) or place < NAMED:
            groups.setdefault(what_reads(kind) or kind, []).append(kind)
    parts = [", ".join(f"{counts[kind]:,} {kind}" for kind in group) + (f" ({said})" if said != group[0] else "")
             for said, group in groups.items()]
    if others := total - hidden - sum(counts[kind] for group in groups.values() for kind in group):
        parts.append(f"{others:,} other{'s' * (others != 1)}")
    if hidden:
        parts.append(f"{hidden:,} hidden")
    return f"skipped {total:,} file{'s' * (total != 1)}: {', '.join(parts)}"
