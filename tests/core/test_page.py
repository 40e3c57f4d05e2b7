from pathlib import Path

import plotly.graph_objects as go

from perturbgen.core.page import Page


def test_a_page_is_self_contained_and_escapes_what_it_shows(tmp_path: Path) -> None:
    page = Page("Depth < 3", "lead")
    page.section("Cells & wells", "a <b> c")
    page.table([{"name": "x<y", "cells": 1200}, {"name": "z", "cells": None}])
    page.figure(go.Figure(go.Scatter(x=[1], y=[2])), "one point")
    html = page.write(tmp_path / "page.html").read_text()
    assert "Depth &lt; 3" in html
    assert "a &lt;b&gt; c" in html
    assert '<td class="number">1,200</td>' in html
    assert "x&lt;y" in html
    assert 'href="#cells-wells"' in html
    assert "<script src=" not in html
    assert "<link" not in html
