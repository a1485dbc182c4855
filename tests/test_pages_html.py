"""Pages as a browser shows them: text is text, plots are drawn, nothing is fetched."""

import math
import re

import pytest
from PIL import Image

from tests.browser import Browser, needs_browser
from train_utils.show.pages import (
    Html,
    data_address,
    escaped,
    img_tag,
    json_block,
    page,
    section,
    table,
    tag,
    write_page,
)
from train_utils.show.pages.plots import TOP, bars, curves, ticks

HOSTILE = '</script><img src=x onerror="console.error(1)">&\u202e\udcff'


def test_text_is_escaped_and_html_is_not():
    assert escaped("a < b & \x1b") == "a &lt; b &amp; \\x1b"
    assert escaped(escaped("<")) == "&lt;"
    assert tag("p", "<", Html("<b>"), title='"', class_="x", hidden=None) == '<p title="&quot;" class="x">&lt;<b></p>'
    assert tag("img", alt="") == '<img alt=""/>'


def test_a_table_puts_numbers_to_the_right():
    text = table(["name", "AP"], [["a<", "0.5"], ["b", "n/a"], ["c", "-"]])
    assert text.count('<td class="number">') == 2 and "<td>a&lt;</td>" in text and "<td>-</td>" in text


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 7), (-3, 1000), (1e-6, 3e-6), (0, 1e9)])
def test_ticks_are_round_and_inside(low, high):
    values = ticks(low, high)
    step = values[1] - values[0]
    assert 3 <= len(values) <= 11 and low - 1e-12 <= values[0] and values[-1] <= high * (1 + 1e-9)
    assert round(step / 10 ** math.floor(math.log10(step) + 1e-9), 6) in (1, 2, 5)


def test_plots_of_nothing_and_of_one_value_are_drawn():
    empty = bars([], [], "x", "y"), curves({}, "x", "y")
    for plot in (*empty, bars([0], ["a"], "x", "y"), curves({"a": ([1], [1])}, "x", "y")):
        assert plot.startswith("<svg") and "nan" not in plot


def test_counts_have_whole_ticks_only():
    assert ticks(0, 2, least=1) == [0, 1, 2] and 0.5 in ticks(0, 2)
    assert ">1.5<" not in bars([2, 1], ["a", "b"], "x", "y")
    assert ">0.5<" in bars([1.5, 1], ["a", "b"], "x", "y")


def test_a_legend_lies_above_the_curves_and_the_name_of_an_axis_beside_its_numbers():
    line = [0, 1], [0, 1]
    plot = curves({"a": line, "b" * 40: line, "c" * 40: line}, "x", "y")
    rows = {name[0]: float(y) for y, name in re.findall(r'y="([-.0-9]+)"[^>]*>([abc]+)</text>', plot)}
    assert rows["a"] == rows["b"] < rows["c"] < TOP  # the third has no room beside the others
    above = -float(re.search(r'viewBox="\S+ (\S+)', plot)[1])
    assert rows["a"] - 12 >= -above and curves({"a": line}, "x", "y").count('class="curve"') == 1  # none for one
    many = bars([2e6], ["a"], "x", "many")
    at = float(re.search(r'x="([-.0-9]+)"[^>]*>many<', many)[1])
    assert at + len("2,000,000") * 7 < 56 - 6 and at - 12 >= float(re.search(r'viewBox="(\S+)', many)[1])


def test_bars_are_as_high_as_their_values():
    plot = bars([1, 4], ["a", "b"], "x", "y")
    heights = [float(part.partition('"')[0]) for part in plot.split(' height="')[2:]]
    assert len(heights) == 2 and heights[1] == pytest.approx(4 * heights[0], abs=0.5)


def test_an_image_is_made_small(tmp_path):
    image = Image.new("RGB", (400, 200), "red")
    assert 'width="100" height="50"' in img_tag(image, "red", 100) and image.size == (400, 200)
    assert data_address(image, form="PNG").startswith("data:image/png;base64,iVBOR")


@needs_browser
def test_a_page_shows_text_as_text_and_fetches_nothing(tmp_path):
    image = Image.new("RGB", (40, 20), "red")
    parts = [
        section("first", f"One {HOSTILE}", table(["a"], [[HOSTILE]] * 3), img_tag(image, HOSTILE)),
        section("second", "Two", bars([1, 2], ["a", HOSTILE], "x", "y"), json_block("data", [HOSTILE[:-1]])),
    ]
    script = 'window.read = JSON.parse(document.getElementById("data").textContent)[0];'
    write_page(tmp_path / "p.html", page(HOSTILE, tag("p", "lead"), parts, script))
    with Browser() as browser:
        browser.open(tmp_path / "p.html")
        assert browser.run("window.read") == HOSTILE[:-1]
        assert browser.run("document.images.length") == 1 and browser.run("document.images[0].naturalWidth") == 40
        assert browser.text("td").startswith("</script><img")
        assert browser.run("document.querySelectorAll('nav a').length") == 2
        light = browser.run("getComputedStyle(document.body).backgroundColor")
        browser.prefer("dark")
        assert browser.run("getComputedStyle(document.body).backgroundColor") != light
        browser.resize(360, 700, mobile=True)
        assert not browser.too_wide()
        assert browser.errors == [] and browser.fetched == []


@needs_browser
def test_the_browser_tells_errors_and_fetches(tmp_path):
    (tmp_path / "p.html").write_text(
        "<img src='http://localhost:9/x.png'><script>missing()</script>"
        "<button onclick='this.textContent = 7'>b</button>"
    )
    with Browser() as browser:
        browser.open(tmp_path / "p.html")
        assert any("missing" in error for error in browser.errors)
        assert browser.fetched == ["http://localhost:9/x.png"]
        browser.press("Tab")
        assert browser.focused().startswith("<button")
        browser.press("Enter")
        assert browser.text("button") == "7"
