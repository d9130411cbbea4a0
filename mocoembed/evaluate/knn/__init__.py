"""kNN accuracy: `accuracy.py` asks for neighbours and has their `votes.py` counted."""
