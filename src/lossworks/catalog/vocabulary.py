"""The terms for what a part helps with, and the words by which people search for each of them."""

HELPS: dict[str, tuple[str, ...]] = {
    "attacks": ("attack*", "adversar*", "perturb*", "evasion", "worst-case input*"),
    "baseline": ("baseline", "reference", "standard", "default", "usual", "plain"),
    "calibration": ("calibrat*", "overconfiden*", "confiden*", "probabilit*", "temperature", "reliab*", "ece"),
    "counts": ("count", "counts", "poisson", "how often", "how many"),
    "federated": ("federated", "client*", "decentral*", "on-device", "hospital*"),
    "groups": ("group*", "subgroup*", "subpopulation*", "fair*", "spurious"),
    "hard examples": ("hard", "difficult", "easy"),
    "heavy tails": ("heavy", "tail", "tails", "skew*", "fat"),
    "imbalance": ("imbalanc*", "unbalanced", "rare", "minority", "long-tail*", "skewed", "underrepresent*", "frequen*"),
    "many classes": ("many class*", "many label*", "thousands", "vocabulary", "extreme"),
    "margins": ("margin*", "hinge", "svm", "separat*"),
    "multi-label": ("multi-label", "multilabel", "tags", "several labels"),
    "noisy labels": ("nois*", "mislabel*", "wrong", "corrupt*", "flipped", "unreliable", "annotat*", "crowd*"),
    "outliers": ("outlier*", "robust loss*", "robust regression", "contaminat*", "anomal*", "gross"),
    "overfitting": ("overfit*", "generali*", "regulari*", "small"),
    "quantiles": ("quantile*", "median", "percentile*", "interval*"),
    "ranking systems": ("leaderboard", "benchmark*", "systems", "aggregate", "rank*", "borda", "kemeny"),
    "real targets by classification": ("regress*", "real", "value", "histogram", "bins", "distribution*"),
    "shift": ("shift*", "drift*", "domain*", "transfer*", "deploy*", "contrast", "brightness"),
    "top-k": ("top-k", "topk", "top", "retriev*"),
    "worst case": ("worst*", "worst-case", "distributionally", "dro", "cvar", "minimax"),
}
"""The terms that a part's ``helps`` may hold, and the search words that lead to each; ``*`` stands for any ending."""
