"""Submission files: written so that they are right, checked so that what is wrong is named by row and column.

Kaggle's form is a CSV: ``id``, then a column for each gene, in the order of ``sample_submission.csv``. Open Problems'
form is an h5ad with obs (``id``, ``cell_type``, ``sm_name``), var (genes) and a layer ``prediction``.

>>> from perturbgen import submission
>>> submission.write(predictions, "id_map.csv", "sample_submission.csv", "submission.csv")
>>> submission.check("submission.csv", "id_map.csv", "sample_submission.csv")
[]
"""

from perturbgen.submission.checking import check
from perturbgen.submission.inputs import Finding, SubmissionError, read_predictions
from perturbgen.submission.writing import write

__all__ = ["Finding", "SubmissionError", "check", "read_predictions", "write"]
