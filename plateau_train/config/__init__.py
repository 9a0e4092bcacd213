"""Settings: their declarations, and how they are resolved. Imports errors only."""
# pyright: reportUnusedImport=false

from plateau_train.config.resolve import (
    RawValue,
    Resolved,
    Sweep,
    can_vary,
    read_toml,
    resolve,
    resolve_sweep,
)
from plateau_train.config.settings import (
    DEFAULT_MOMENTUM,
    DEFAULT_WEIGHT_DECAY,
    LARGEST_COUNT,
    LARGEST_SEED,
    MOST_SEEDS,
    SETTINGS,
    ClusterSettings,
    DataSettings,
    Metric,
    Mode,
    ModelSettings,
    OptimizerName,
    OptimizerSettings,
    PlateauSettings,
    Precision,
    RunSettings,
    Schedule,
    Setting,
    Settings,
    Split,
    as_text,
    nearest,
)
