"""The names of tags, parameters, metrics and files in MLflow; other programs rely on them."""

ROLE = "fmnist.role"
SEARCH, TRIAL, TRAIN = "search", "trial", "train"
POINT = "fmnist.point"
# Which network, unless it is the coursework's; its hyperparameters with their types, as JSON.
NETWORK = "fmnist.network"
# On a search whose combinations of hyperparameters are in `POINTS_FILE`: how many.
COMBINATIONS = "fmnist.combinations"
HYPERPARAMETERS = "fmnist.hyperparameters"
# On a search whose points depend on results, and are those of its trials: how many may be without
# one when another is asked for; how many it had asked for when it ended, and how many trials that
# were.
AHEAD = "fmnist.ahead"
ASKED_POINTS, ASKED_TRIALS = "fmnist.asked_points", "fmnist.asked_trials"
DATA_SHA256 = "fmnist.data_sha256"
DATASET = "fmnist.dataset"
PROTOCOL = "fmnist.protocol"
ERROR = "fmnist.error"
# On a diverged trial: the epoch whose loss was not finite.
DIVERGED = "fmnist.diverged"
# On a final training, which has no validation images: the run of the trial that it is the final of.
FINAL_OF = "fmnist.final_of"
TEST_OPENED = "fmnist.test_opened"
REPORT_OF = "fmnist.report_of"

# On a search: the id of its best trial.
BEST_RUN = "fmnist.best_run"
# On a search: the fingerprint of its grid.
GRID = "fmnist.grid"
# When the command of a search or a single training was last given, even if nothing was left to do.
ASKED_AT = "fmnist.asked_at"
FRESH = "fmnist.fresh"
LEASE = "fmnist.lease"
INTERRUPTIONS = "fmnist.interruptions"
REUSED = "fmnist.reused"
CONTINUES, CONTINUED_BY = "fmnist.continues", "fmnist.continued_by"
THREADS = "fmnist.threads"
VERSION = "fmnist.version"
CODE_SHA256 = "fmnist.code_sha256"

# Follows the name of a search's best trial, where everyone sees it.
BEST_MARK = " ★"

PARENT = "mlflow.parentRunId"
ENTRY_POINT = "mlflow.project.entryPoint"

# The alias of a registered model's version in use, and what the versions carry beside `POINT`,
# `DATA_SHA256`, `DATASET` and `PROTOCOL`.
CHAMPION = "champion"
RUN = "fmnist.run_id"
VAL_ACCURACY = "fmnist.val_accuracy"
SPLIT_SEED, SPLIT_LIMIT = "fmnist.split_seed", "fmnist.split_limit"
SPLIT_VALIDATES = "fmnist.split_validates"
# The size of the data that is split: the fields of `DataSize`.
SPLIT_SIZE = ("train_images", "test_images", "classes")
SPLIT_SIZE_PREFIX = "fmnist.split_"
# MLflow's own tag of a logged model, from which its page lists the versions.
MODEL_VERSIONS = "mlflow.modelVersions"

BEST_VAL_ACCURACY = "best_val_accuracy"
# Of what points are compared by, where that is not the validation accuracy.
BEST_OBJECTIVE = "best_objective"
FINISHED_POINTS = "finished_points"

MODEL = "model"
# A parameter of a logged model: of its `KERAS_FILE`.
MODEL_SHA256 = "model_sha256"
# Another, of one that needs code: of all files in its `CODE_FOLDER`; see `files.digest_of`.
MODEL_CODE_SHA256 = "model_code_sha256"
# Inside a logged model.
KERAS_FILE = "data/model.keras"
CODE_FOLDER = "code"
# In the package there: module and name of each class and function, as `networks.logged_code` reads.
OBJECTS_FILE = "objects.json"
HISTORY_FILE = "history.json"
ENVIRONMENT_FILE = "environment.json"
CURVES_FILE = "figures/learning_curves.png"
CLASSES_FILE = "validation/classes.csv"
CONFUSION_FILE = "validation/confusion_matrix.csv"
GRID_FILE = "figures/grid.png"
LEADERBOARD_FILE = "leaderboard.csv"
SEARCH_FILE = "search.json"
REUSED_FILE = "reused.json"
# Holds the axes, if one has more values than fit into a parameter.
AXES_FILE = "axes.json"
# Holds the combinations of hyperparameters of a grid that is not all of them.
POINTS_FILE = "points.json"
TRACEBACK_FILE = "traceback.txt"
REPORT_FOLDER = "report"
VALIDATION_FOLDER = "validation"

# Prefixes of a search's parameters. Bare names would collide with those that `mlflow run` logs on
# the same run, spelled as the person typed them.
AXIS_PREFIX = "grid."
BASE_PREFIX = "base."
SPLIT_PREFIX = "split."


def unmarked(name: str) -> str:
    """Return a trial's name without the star that earlier releases gave to the best one."""
    return name.removesuffix(BEST_MARK)
