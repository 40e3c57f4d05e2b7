"""What an extension promises is checked: each breach is found, and told in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from perturbgen.baselines import REGISTRY, baseline_breaches
from perturbgen.cli import _run
from perturbgen.contract import check_extension
from perturbgen.core.errors import ConfigError, ExtensionError
from perturbgen.core.extensions import Extension
from perturbgen.evaluate import METRICS, metric_breaches
from perturbgen.models import MODELS, own_settings
from perturbgen.train import model_breaches

from .conftest import Install
from .test_catalogue import COMPUTE, MEAN, METRIC

QUICK = ("zeros", "additive", "random_draw", "ground_truth", "kernel_ridge", "neighbours")


@pytest.mark.parametrize("name", METRICS.built_in)
def test_our_metrics_keep_what_is_asked_of_others(name: str) -> None:
    assert list(metric_breaches(METRICS[name])) == []


@pytest.mark.parametrize("name", QUICK)
def test_our_baselines_keep_what_is_asked_of_others(name: str) -> None:
    where = f"perturbgen.baselines.{REGISTRY[name].where}"
    assert list(baseline_breaches(Extension("baseline", name, where))) == []


@pytest.mark.parametrize("name", MODELS.built_in)
def test_our_models_keep_what_is_asked_of_others(name: str) -> None:
    assert list(model_breaches(Extension("model", name, name))) == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("self.mean = train.mean() + np.random.normal()", "other values with the same rng"),
        ("self.mean = train.mean() + rng.normal()", "says random = False"),
        ("self.mean = train.mean(); train.iloc[0, 0] = 9", "changes the table"),
        ("self.mean = train.mean(); print('fitted')", "prints"),
        ("self.mean = train.iloc[0]", "depends on the order of rows"),
        ("self.mean = train.mean() * np.nan", "missing or infinite"),
        ("self.mean = train.mean()[:5]", "misses 25 of 30 genes"),
        ("self.mean = train.loc['nowhere']", "fails to fit: KeyError"),
        ("self.mean = train.mean()[::-1]", "in another order than asked"),
    ],
)
def test_what_a_baseline_breaks(install: Install, body: str, said: str) -> None:
    code = MEAN.replace("self.mean = train.mean() + self.plus", body)
    install("brought", f"import numpy as np\n{code}")
    with pytest.raises(ExtensionError, match=rf"breaks 1 of its promises:\n  1\. .*{said}"):
        check_extension("brought:Mean")


ERROR = "np.abs(t.truth.values - t.prediction.values)"


@pytest.mark.parametrize(
    ("compute", "options", "said"),
    [
        ("np.random.random(len(t.groups))", "", "asked again"),
        ("np.full(len(t.groups), np.nan)", "", "has no value"),
        ("np.zeros((len(t.groups), 1))", "", r"shape \(12, 1\)"),
        ("np.full(len(t.groups), 1.5)", "", "gives 1.5"),
        ("np.full(len(t.groups), 0.5)", "", "gives a perfect prediction 0.5, and says that 1"),
        (COMPUTE, ", zeros=0.5", "gives zeros 0, and says 0.5"),
        (f"np.tanh({ERROR}.mean(axis=1))", "", "prefers a noisy prediction"),
        (f"1 - np.tanh({ERROR}[:, 0])", "", "depends on the order of genes"),
        (f"1 / (1 + {ERROR}.mean(axis=1))", ", scale_free=True", "says that it is scale_free"),
        (f"np.ones(len(t.groups)) / (1 + {ERROR}.mean())", "", "compares conditions with each"),
    ],
)
def test_what_a_metric_breaks(install: Install, compute: str, options: str, said: str) -> None:
    code = METRIC.replace(COMPUTE, compute).replace(", high=1", f", high=1{options}")
    install("brought", code)
    with pytest.raises(ExtensionError, match=said):
        check_extension("brought:SIGNS")


def test_a_metric_that_keeps_its_promises(install: Install) -> None:
    install("brought", METRIC)
    check_extension("brought:SIGNS")


MODEL = """
import torch
from perturbgen.models import NBVAE

class Mine(NBVAE):
    def forward(self, batch, draws):
        terms = super().forward(batch, draws)
        {forward}

    def sample(self, codes, size, generator, z=None):
        counts = super().sample(codes, size, generator, z)
        {sample}

    def encode(self, batch):
        z = super().encode(batch)
        {encode}
"""


@pytest.mark.parametrize(
    ("method", "line", "said"),
    [
        ("forward", "return terms", ""),
        ("forward", "return {k: v.mean() for k, v in terms.items()}", "'reconstruction' gives"),
        ("forward", "return {'all': terms['kl']}", "no term 'kl' to anneal"),
        ("forward", "return {**terms, 'kl': terms['kl'] * float('inf')}", "'kl' is not finite"),
        ("forward", "return {**terms, 'kl': terms['kl'] + torch.randn(1)}", ""),
        ("forward", "return {k: v.detach() for k, v in terms.items()}", "fails: RuntimeError"),
        ("forward", "batch.counts.values.add_(1); return terms", "changes the counts"),
        ("sample", "return counts + 0.5", "no counts"),
        ("sample", "return counts - 100", "counts below 0"),
        ("sample", "return torch.ones_like(counts)", "whatever is drawn"),
        ("sample", "return counts + torch.randint(3, (1,))", "other counts with the same gen"),
        ("sample", "return counts[1:]", "sample gives"),
        ("encode", "return z[:, :1]", r"encode gives \(16, 1\)"),
        ("encode", "return z - z.mean(axis=0)", "encodes a cell otherwise among other cells"),
        ("encode", "return z / 0", "not finite"),
        ("encode", "print('here'); return z", "prints"),
    ],
)
def test_what_a_model_breaks(install: Install, method: str, line: str, said: str) -> None:
    same = {"forward": "return terms", "sample": "return counts", "encode": "return z"}
    lines = {**same, method: line}
    install("brought", MODEL.format(**lines))
    if not said:
        check_extension("brought:Mine")
        return
    with pytest.raises(ExtensionError, match=said):
        check_extension("brought:Mine")


OWN = """
import torch
from perturbgen.models import LatentModel, dense

class Own(LatentModel):
    def __init__(self, n_latent, conditions, decoder, *, category=None, width=4):
        super().__init__(conditions, decoder, category=category)
        self.n_latent = n_latent
        genes = decoder.head.out_features
        layers = torch.nn.Linear(genes, width), torch.nn.Tanh(), torch.nn.Linear(width, n_latent)
        self.encoder = torch.nn.Sequential(*layers)

    def forward(self, batch, draws):
        z = self.encoder(dense(batch.counts).log1p())
        return {"counts": -self.log_likelihood(z, batch), "size": 0.5 * z.square().sum(-1)}

    @torch.no_grad()
    def encode(self, batch):
        return self.encoder(dense(batch.counts).log1p())

    def propose(self, batch, points):
        return lambda noise: (points + noise, self.prior_log_prob(noise))

    def prior_log_prob(self, z):
        return torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)

    def prior_sample(self, n, generator, codes=None):
        return torch.randn(n, self.n_latent, generator=generator)
"""


def test_a_model_of_its_own_parts_keeps_its_promises(install: Install) -> None:
    install("brought", OWN)
    check_extension("brought:Own")
    assert own_settings("brought:Own", {"width": 2}) == {"width": 2}
    assert own_settings("brought:Own", {}) == {"width": 4}


def test_where_else_a_model_may_fail_its_name_is_told(install: Install) -> None:
    install("brought", OWN.replace("return torch.randn(n", "return torch.rondn(n"))
    with pytest.raises(ExtensionError, match=r"fails in prior_sample: AttributeError.*line"):
        check_extension("brought:Own")


def test_a_parameter_that_is_never_trained_is_found(install: Install) -> None:
    code = MODEL.format(forward="return terms", sample="return counts", encode="return z")
    code += "    def groups(self):\n        return {'network': list(self.encoder.parameters())}\n"
    install("brought", code)
    with pytest.raises(ExtensionError, match=r"out of groups\(\)"):
        check_extension("brought:Mine")


def test_the_command(
    install: Install,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _run(["check-extension"]) == 0
    assert "no installed package" in capsys.readouterr().out
    install(
        "brought", f"{MEAN}\n{METRIC}", baseline_mean="brought:Mean", metric_half="brought:HALF"
    )
    assert _run(["check-extension", "mean"]) == 0
    assert "keeps all" in capsys.readouterr().out
    assert _run(["check-extension"]) == 1, "a metric that is always a half says that 1 is best"
    said = capsys.readouterr()
    assert "mean" in said.out
    assert "ExtensionError: the metric 'half'" in said.err
    assert "Traceback" not in said.err
    assert _run(["check-extension", "maen"]) == 2
    assert "did you mean 'mean'" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="there is no kind"):
        check_extension("mean", kind="modle")


ORDERED = "np.arange(len(t.groups))"
TOP = """
def top(values, k=50):
    return np.argsort(-np.abs(values), axis=1)[:, :k]

def overlap(t):
    pairs = zip(top(t.truth.values), top(t.prediction.values))
    return np.array([len(set(a) & set(b)) / 50 for a, b in pairs])
"""


def test_a_metric_that_depends_on_the_order_of_rows_is_told_so(install: Install) -> None:
    """across = True was the advice; with it the metric passed, and reversed rows scored else."""
    compute = f"1 / (1 + {ORDERED} * {ERROR}.mean(axis=1))"
    for options in ("", ", across=True"):
        code = METRIC.replace(COMPUTE, compute).replace(", high=1", f", high=1{options}")
        name = "brought_across" if options else "brought"
        install(name, code)
        with pytest.raises(ExtensionError, match="depends on the order of rows") as error:
            check_extension(f"{name}:SIGNS")
        assert "across = True has to say" not in str(error.value)


def test_a_metric_that_breaks_ties_by_position_is_told_so(install: Install) -> None:
    """A plain argsort gave zeros .166 or .1685, by the order of genes."""
    install("brought", METRIC.replace("SIGNS =", f"{TOP}\nSIGNS =").replace(COMPUTE, "overlap(t)"))
    with pytest.raises(ExtensionError, match="order of genes where values are equal"):
        check_extension("brought:SIGNS")


def test_a_value_out_of_range_is_told_with_its_end(install: Install) -> None:
    install("brought", METRIC.replace(COMPUTE, f"-{ERROR}.mean(axis=1) - 1"))
    with pytest.raises(ExtensionError, match=r"gives -[\d.]+, below low = 0"):
        check_extension("brought:SIGNS")


def test_a_class_of_no_kind_is_told_what_is_expected(install: Install) -> None:
    """A plain Module was taken for a baseline."""
    install("brought", "import torch\n\nclass Net(torch.nn.Module):\n    pass\n")
    with pytest.raises(ExtensionError, match="class of no kind that is known") as error:
        check_extension("brought:Net")
    assert "LatentModel (a torch Module alone is not one)" in str(error.value)
    with pytest.raises(ExtensionError, match=r"expected: a subclass of perturbgen\.models\.Latent"):
        check_extension("brought:Net", kind="model")


def test_a_misspelt_object_is_looked_for_among_what_the_module_defines(install: Install) -> None:
    """The list of what is known held its imports."""
    install("brought", f"import time\n{METRIC}")
    with pytest.raises(ConfigError, match=r"known: 'SIGNS'$"):
        check_extension("brought:Zzz")


def test_broken_promises_are_listed_under_their_names(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    other = "HALF = Metric('x', 'X', 'X', lambda t: np.full(len(t.groups), 2.0), '', high=1)"
    install("brought", f"{METRIC}\n{other}\n".replace(COMPUTE, "np.full(len(t.groups), 0.5)"))
    assert _run(["check-extension", "brought:SIGNS", "brought:HALF"]) == 1
    said = capsys.readouterr().err
    assert said.index("'brought:SIGNS' breaks") < said.index("perfect prediction 0.5")
    assert said.index("perfect prediction 0.5") < said.index("'brought:HALF' breaks")
    assert said.index("'brought:HALF' breaks") < said.index("gives 2, above high = 1")
