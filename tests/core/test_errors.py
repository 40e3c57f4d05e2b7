from perturbgen.core.errors import CountsError, PerturbgenError, UserError, shorten, suggest


def test_an_error_reads_as_the_style_guide_shows() -> None:
    error = CountsError(
        "layer 'counts' holds non-integers",
        expected="raw counts",
        cause="normalised",
        fix="--layer raw",
    )
    assert str(error).splitlines() == [
        "layer 'counts' holds non-integers",
        "  expected     raw counts",
        "  usual cause  normalised",
        "  fix          --layer raw",
    ]


def test_empty_parts_are_left_out() -> None:
    assert str(UserError("what")) == "what"


def test_a_users_mistake_and_a_failure_have_their_own_exit_codes() -> None:
    assert (UserError("x").exit_code, PerturbgenError("x").exit_code) == (2, 1)


def test_shorten_names_the_first_and_counts_the_rest() -> None:
    assert shorten(["a", "b", "c"], limit=2) == "'a', 'b' and 1 more"
    assert shorten(["a"], limit=2) == "'a'"


def test_suggest_finds_the_nearest_or_lists_what_is_known() -> None:
    assert suggest("cel_type", ["plate", "cell_type"]) == "did you mean 'cell_type'?"
    assert suggest("zzz", ["plate", "well"]) == "known: 'plate', 'well'"
