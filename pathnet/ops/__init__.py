"""Ops: a whole stage of gated blocks a call."""

from pathnet.ops.stage import stage
from pathnet.ops.stage_eval import stage_eval

__all__ = ["stage", "stage_eval"]
