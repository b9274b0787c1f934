"""The inner loop: adaptation to a support set, and the derivative of what comes out of it. Pure torch."""

from .adapt import Adapted, adapt
from .compiled import compiled
from .loop import Diverged, InnerLoop
from .walk import MetaGradient, Order, meta_gradient

__all__ = ["Adapted", "Diverged", "InnerLoop", "MetaGradient", "Order", "adapt", "compiled", "meta_gradient"]
