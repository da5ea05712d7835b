"""`data.*`: the dataset is there, and what is in it can be trained on."""

from checks import (
    data_features,
    data_metadata,
    data_norm_stats,
    data_present,
    data_prompts,
    data_sample,
    data_timestamps,
    data_values,
    data_version,
    data_videos,
)

CHECKS = (
    data_version.CHECK,
    data_present.CHECK,
    data_metadata.CHECK,
    data_timestamps.CHECK,
    data_videos.CHECK,
    data_features.CHECK,
    data_prompts.CHECK,
    data_norm_stats.CHECK,
    data_values.CHECK,
    data_sample.CHECK,
)
