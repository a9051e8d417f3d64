from ..pipeline.config import SPDConfig
from .spd import SPDLoss, spd_loss

__all__ = ["SPDConfig", "SPDLoss", "spd_loss"]
