"""Settings: their declarations, how they are resolved, and how they are merged.

Imports errors only.
"""
# pyright: reportUnusedImport=false

from plateau_train.config.arguments import (
    ARGUMENTS,
    OTHER_NAMES,
    as_arguments,
    by_name,
    read_arguments,
)
from plateau_train.config.figures import (
    FIGURE_OPTIONS,
    FIXED_PANELS_OPTIONS,
    PANEL_NAMES,
    FigureOptions,
    PanelName,
    figure_options,
    parse_figure_options,
)
from plateau_train.config.resolve import (
    ARGUMENT,
    RawValue,
    Resolved,
    Sweep,
    cluster_policy,
    merge,
    resolve,
    resolve_sweep,
    resolve_whole,
    sweep_policy,
)
from plateau_train.config.settings import (
    BUDGETED,
    DECAYS,
    DEFAULT_MOMENTUM,
    DEFAULT_WEIGHT_DECAY,
    LARGEST_COUNT,
    LOWERING,
    RULE_KEYS,
    SCHEDULE_FREE,
    SETTINGS,
    Augmentation,
    ClusterSettings,
    DataSettings,
    Metric,
    Mode,
    ModelSettings,
    OnDrop,
    OptimizerName,
    OptimizerSettings,
    PlateauSettings,
    Precision,
    RunSettings,
    Schedule,
    Setting,
    Settings,
    Smoothing,
    Split,
    as_text,
    describe_span,
    did_you_mean,
    expand_home,
    read_smoothing,
)
