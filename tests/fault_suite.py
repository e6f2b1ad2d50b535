"""Tests elsewhere that hold a promise of docs/reliability.md: they are part of the suite of faults."""

# File -> names, or parts of names; all of it where there are none.
ALSO = {
    "test_checkpoint.py": (),
    "test_preempt.py": (),
    "test_data_broken.py": (),
    "test_data_exact.py": ("ranks_readers", "a_run_goes_on", "every_epoch"),
    "test_data_formats.py": (
        "readers_are_forked",
        "truncated_database",
        "not_written_to_its_end",
        "missing_key",
        "would_run_something",
        "links_and_paths_out_of_a_tar",
        "truncated_or_compressed_tar",
        "shard_that_vanishes",
        "one_environment_a_process",
    ),
    "test_data_order.py": (),
    "test_data_prepare.py": ("flipped_bit", "killed_goes_on"),
    "test_data_scale.py": ("memory_is_flat",),
    "test_data_pipeline.py": ("time_spent_waiting", "continues_from_a_step"),
    "test_loop.py": ("left_the_finite", "other_images", "different_checkpoints", "in_use_is_refused"),
    "test_metrics.py": ("resumed_log", "on_disk_at_once"),
    "test_config.py": ("resuming", "hash"),
    "test_train.py": ("two_ranks_resume", "zero_stages", "sigterm", "refuses_to_go_on", "exit_code_two"),
    "test_report_page.py": ("code_stay_text",),
    "test_weights_fuzz.py": (),
}


def belongs(file: str, test: str) -> bool:
    """Whether a test of a file is part of the suite without saying so itself."""
    parts = ALSO.get(file)
    return parts is not None and (not parts or any(part in test for part in parts))
