"""How the grid of each kernel follows from its arguments and settings, for the JSON beside its PTX.

ceil(a / b) is rounded up; a name is that of a parameter or of a setting.
"""

from __future__ import annotations

TILES = "ceil(count / BLOCK_M)", "ceil(OUT / BLOCK_N)"  # of what a convolution puts out
TILES_IN = "ceil(count / BLOCK_M)", "ceil(IN / BLOCK_N)"  # of its input's gradient

GRIDS: dict[str, tuple[str, ...]] = {
    "conv_forward": TILES,
    "conv_again": TILES,
    "conv_statistics": TILES,
    "conv_of_rebuilt": ("ceil(count / BLOCK_M)",),
    "merge_rebuilt": ("ceil(count / BLOCK_M)",),
    "inner_of_rebuilt": ("ceil(count / BLOCK_M)", "1"),
    "weight_gradient_of_rebuilt": ("partial.shape[0]", "ceil(OUT / BLOCK_O)"),
    "outer_to_rebuilt": TILES_IN,
    "arrive_at_rebuilt": TILES_IN,
    "conv_residual": TILES,
    "first_norm": ("ceil(count / BLOCK_M)", "ceil(CHANNELS / BLOCK_N)"),
    "residual_gradient": TILES_IN,
    "depart": ("ceil(count / BLOCK_M)",),
    "merge": ("ceil(count / BLOCK_M)",),
    "arrive": TILES_IN,
    "inner_gradient": TILES_IN,
    "outer_gradient": TILES_IN,
    "weight_gradient": ("partial.shape[0]", "SIDE * ceil(IN / BLOCK_I) * ceil(OUT / BLOCK_O)"),
    "sum_slots": ("ceil(slot_size / BLOCK)",),
    "activate": ("ceil(count / BLOCK_M)", "ceil(CHANNELS / BLOCK_N)"),
    "inner_sums": TILES_IN,
    "add_residual": ("ceil(count / BLOCK_M)", "ceil(CHANNELS / BLOCK_N)"),
    "conv_eval": TILES,
    "conv1_of_rows": TILES,
    "conv2_of_rows": TILES,
    "merge_rows": ("ceil(count / BLOCK_M)",),
    "arrive_rows": TILES_IN,
    "outer_rows": TILES_IN,
    "mask_rows": ("ceil(count / BLOCK_M)",),
    "copy_rows": ("ceil(count / BLOCK)",),
    "path_conv": ("ceil(count / BLOCK_M)", "ceil(CHANNELS / BLOCK_N)"),
    "path_mask": ("ceil(count / BLOCK_M)", "ceil(CHANNELS / BLOCK_N)"),
}
