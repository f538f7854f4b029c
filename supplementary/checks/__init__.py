"""Checks of the exercises: `check_...(answer)` says what is right, what is not, and why.

One file for each notebook; `check` holds what they share.
"""

from .batching import check_collate_left, check_mask_labels, check_padding_share, check_truncate
from .dataset import check_find_leaks, check_phi3_pieces, check_rare_similarity
from .lora import check_add_lora_to, check_extract_adapter, check_largest_rank, check_to_entries

__all__ = [
    "check_add_lora_to",
    "check_collate_left",
    "check_extract_adapter",
    "check_find_leaks",
    "check_largest_rank",
    "check_mask_labels",
    "check_padding_share",
    "check_phi3_pieces",
    "check_rare_similarity",
    "check_to_entries",
    "check_truncate",
]
