"""What representations are worth: how the parts of this room hang together.

    knn/         neighbours vote: accuracy, k and T chosen on a held-out part, suspected wrong labels, through an index
    linear/      logistic regression of stored features: folds, few labels, the penalty chosen on a held-out part
    images/      what learns from images: linear classification as in papers (probe), fine-tuning, their baselines
    retrieval/   AP and its relatives
    unlabelled.py  RankMe, uniformity, alignment: without labels

    sides.py, stored.py    embeddings files as sides, train and test, with labels -> rows in bounded memory
    folds.py, seeds.py     which rows are held out or keep their labels; repeats
    baselines.py           what needs no trained encoder, by pixels.py and untrained.py
    measures.py, words.py  the measures with their intervals, and what they are called
    result.py              one schema of JSON for all; compare.py: two results side by side
"""
