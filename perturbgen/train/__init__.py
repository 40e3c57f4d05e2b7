"""One loop for every model: schedules, checkpoints, early stopping, TensorBoard.

The loop takes any feed and any model (``protocols``, ``nn.trainable``); of models of counts,
``train(settings)`` makes a run directory, ``resume`` goes on with one, ``load_run`` gives its model back.
"""

from perturbgen.train.checkpoint import TrainedRun, load_run
from perturbgen.train.run import resume, train
from perturbgen.train.settings import RunSettings

__all__ = ["RunSettings", "TrainedRun", "load_run", "resume", "train"]
