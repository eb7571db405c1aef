"""The sizes that are measured where none are asked for, and of feed-forward blocks the recipes too."""

DEFAULT_N = {"cpu": "256,512", "cuda": "4096,8192,16384,40960"}
DEFAULT_B = {"cpu": "4,16", "cuda": "16,64,256,1024"}
TRAINING_N = {"cpu": "256", "cuda": "4096,8192,16384"}
TRAINING_B = {"cpu": "16", "cuda": "1024,4096"}
DRIFT_B, TRAJECTORY_B = 16, 32
DEFAULT_FFN = {
    "cpu": ("activation", "dropout24", "fst"),
    "cuda": (
        *("activation", "activation:gradient=dense", "activation:masks=rows", "activation:where=post"),
        *("activation:where=post:act=gelu", "dropout24:act=relu2", "dropout24", "fst", "s_ste"),
    ),
}
"""Recipes of phase 6."""
DEFAULT_D = {"cpu": "64", "cuda": "1024,4096,8192"}
DEFAULT_TOKENS = {"cpu": (64,), "cuda": (4096, 16384)}
CHECKED = {"cpu": (32, 256, 60, "fp32"), "cuda": (256, 1024, 500, "bf16")}
"""Width, hidden features, tokens and dtype of a block that is held to its definition; no kernel takes such tokens."""

_LEARNED = "{cpu} and {cuda} (rows of recipes in the others too: what both lists have)"
ABOUT_N = "sizes, N or N×K: 4096,8192x14336. Default on a CPU {cpu}, on GPUs {cuda}; in phase 3 ".format(
    **DEFAULT_N
) + _LEARNED.format(**TRAINING_N)
ABOUT_B = (
    "rows of X. Default on a CPU {cpu}, on GPUs {cuda}; in phase 3 ".format(**DEFAULT_B)
    + _LEARNED.format(**TRAINING_B)
    + f"; of drift {DRIFT_B}, of trajectories {TRAJECTORY_B}; of feed-forward blocks "
    + " and ".join(",".join(map(str, tokens)) for tokens in DEFAULT_TOKENS.values())
)
ABOUT_D = (
    "widths of feed-forward blocks, d or d×hidden, where hidden is else 4·d: 4096,4096x14336. Default on a CPU "
    + "{cpu}, on GPUs {cuda}".format(**DEFAULT_D)
    + ". Of what is timed: checked is a small one, "
    + " and ".join(f"{d}x{hidden} with {tokens} tokens" for d, hidden, tokens, _ in CHECKED.values())
)
"""Of the options, for their help."""
