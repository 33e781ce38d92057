"""The weights of a drafter, of either kind that is trained."""

from __future__ import annotations

from .config import HeadConfig, MedusaConfig
from .medusa import MedusaHead
from .model import FalconHead

AnyHead = FalconHead | MedusaHead


def new_head(config: HeadConfig) -> AnyHead:
    """Untrained weights of the kind that is described."""
    return MedusaHead(config) if isinstance(config, MedusaConfig) else FalconHead(config)
