"""Retrieval: `measure.py` ranks a bank for every query, `ranked.py` has the formulas, `pairs.py` what is relevant."""
