"""How the measures of results are called in tables; it needs no other library."""

WORDS = {"top1": "top-1", "top5": "top-5", "majority": "majority", "balanced": "balanced", "ap": "AP",
         "map": "mAP", "map_at_r": "mAP@R", "r_precision": "R-precision", "rankme": "RankMe"}
CLASSIFIED = ("top1", "top5", "majority", "balanced", "ap")  # measures of classifiers, in the order of tables
TASKS = {"knn": "kNN accuracy", "linear": "Linear classification", "retrieval": "Retrieval",
         "rankme": "Without labels", "finetune": "Fine-tuning"}


def words(name: str) -> str:
    """`precision_at_5_over_k` -> `precision at 5, over k`; `top1` -> `top-1`."""
    return WORDS.get(name) or name.replace("_over_", ", over ").replace("_", " ").replace("min r k", "min(R, k)") \
        .replace("min k last", "min(k, last)").replace("over r", "over R").replace("ap at", "AP at")
