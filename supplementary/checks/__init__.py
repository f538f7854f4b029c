"""Checks of the exercises: `check_...(answer)` says what is right, what is not, and why.

One file for each notebook, two for the clinic; `check` holds what they share.
"""

from .batching import check_collate_left, check_mask_labels, check_padding_share, check_truncate
from .clinic import (
    check_repaired_batch,
    check_repaired_cut,
    check_repaired_labels,
    check_repaired_row,
)
from .clinic_runs import (
    check_repaired_prompt,
    check_repaired_rates,
    check_repaired_step,
    check_repaired_table,
)
from .dataset import check_find_leaks, check_phi3_pieces, check_rare_similarity
from .evaluation import check_compare_runs, check_fair_preference, check_resampled_kappas
from .finetuning import (
    check_encode_phi3,
    check_linear_rate,
    check_pair_responses,
    check_split_losses,
)
from .lora import check_add_lora_to, check_extract_adapter, check_largest_rank, check_to_entries
from .model import check_cache_mask, check_cut_response, check_min_p

__all__ = [
    "check_add_lora_to",
    "check_cache_mask",
    "check_collate_left",
    "check_compare_runs",
    "check_cut_response",
    "check_encode_phi3",
    "check_extract_adapter",
    "check_fair_preference",
    "check_find_leaks",
    "check_largest_rank",
    "check_linear_rate",
    "check_mask_labels",
    "check_min_p",
    "check_padding_share",
    "check_pair_responses",
    "check_phi3_pieces",
    "check_rare_similarity",
    "check_repaired_batch",
    "check_repaired_cut",
    "check_repaired_labels",
    "check_repaired_prompt",
    "check_repaired_rates",
    "check_repaired_row",
    "check_repaired_step",
    "check_repaired_table",
    "check_resampled_kappas",
    "check_split_losses",
    "check_to_entries",
    "check_truncate",
]
