"""Meta-gradients to meta-parameters. Read worker.py first: it is the one loop; the rest is what it calls."""
