"""Linear accuracy of stored features: `accuracy.py` -> `penalty.py`, what is chosen -> `logistic.py`, the solver."""
