"""What learns from images.

    labelled.py    images and their labels, in batches; baselines.py, kept_baselines.py: what needs no trained encoder
    probe.py       linear classification as in papers -> probing.py, heads.py on a frozen_backbone.py -> probe_result.py
    finetune.py    the whole network -> finetuning.py, one run of it -> finetune_result.py
    tally.py       what is done of either, for the progress
"""
