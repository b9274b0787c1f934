"""One file per meta-learning algorithm; config/algorithms.py names them. Each says its paper, equation, bias, cost."""
