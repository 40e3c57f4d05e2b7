"""One loop and one run for every model: schedules, checkpoints, early stopping, TensorBoard.

Of generative models of counts ``train(settings)`` makes a run directory, ``resume`` goes on with
one, ``load_run`` gives its model back. Another kind of model brings a ``Recipe`` of its own.
"""

from perturbgen.train.contract import model_breaches
from perturbgen.train.generative import CELLS, TrainedRun, load_run, resume, train, train_once
from perturbgen.train.heldout import CellJudge
from perturbgen.train.pictures import cells_page
from perturbgen.train.run import Recipe, Trained, launch, require_unseen
from perturbgen.train.settings import RunSettings
