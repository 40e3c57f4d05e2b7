import base64
import gzip
import re
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

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


def test_plotly_is_packed_once_and_only_where_something_is_drawn() -> None:
    page = Page("Title")
    page.table([{"a": 1}])
    assert 'id="plotly"' not in page.html()
    page.figure(go.Figure(go.Scatter(x=[1], y=[2])), "one")
    page.figure(go.Figure(go.Scatter(x=[3], y=[4])), "two")
    html = page.html()
    [packed] = re.findall(r'<script type="text/plain" id="plotly">(.*?)</script>', html)
    assert gzip.decompress(base64.b64decode(packed)).decode() == get_plotlyjs()
    assert len(html) < len(get_plotlyjs()) / 2
    assert "showSendToCloud: false" in html


def test_the_answer_stands_before_everything_else() -> None:
    page = Page("Title", "lead", answer="mine < yours")
    page.section("One")
    assert '</h1><p class="answer">mine &lt; yours</p><p class="lead">lead</p><nav>' in page.html()


def test_a_field_that_filters_a_table_names_it() -> None:
    page = Page("Title")
    page.table([{"a": "x"}], search="Only rows with")
    [table] = re.findall(r'data-filters="(.*?)"', page.html())
    assert f'<table id="{table}">' in page.html()
    assert 'class="scroll' in page.html()
