"""report.html as validation.py --report writes it: its numbers are the record's, and a browser can do all it offers."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

import validation
from tests.browser import Browser, needs_browser
from tests.small_runs import call
from tests.spoilt_results import spoil
from tests.tiny_model import write_checkpoint, write_coco
from train_utils.checkpoints.checkpoint import load_file, save_checkpoint
from train_utils.data.formats.shapes import make_shapes
from train_utils.data.opening import open_data
from train_utils.evaluation.mistakes import Evaluated, sections, write_report
from train_utils.evaluation.mistakes import gallery as gallery_module
from train_utils.evaluation.mistakes.errors import KINDS, kinds_of
from train_utils.evaluation.mistakes.gallery import Shown
from train_utils.evaluation.mistakes.matching import match
from train_utils.evaluation.mistakes.scores import best_of_all
from train_utils.evaluation.numbers import evaluate_results


class Tables(HTMLParser):
    """{id of a table: rows of cells}; a cell is its text, or (text, value) where it is a <data>."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.table = {}, None
        self.feed(text)

    def handle_starttag(self, name, attributes):
        given = dict(attributes)
        if name == "table":
            self.table = self.tables.setdefault(given.get("id"), [])
        elif name == "tr":
            self.table.append([])
        elif name in ("td", "th"):
            self.table[-1].append("")
        elif name == "data" and self.table and self.table[-1]:
            self.table[-1][-1] = given["value"]

    def handle_endtag(self, name):
        if name == "table":
            self.table = None

    def handle_data(self, text):
        if self.table and self.table[-1]:
            cell = self.table[-1][-1]
            is_value = self.get_starttag_text().startswith("<data")
            self.table[-1][-1] = (text, cell) if is_value and isinstance(cell, str) else cell + text


def validate(*flags):
    return call(validation, "--device", "cpu", *flags)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder of the report, data set, results) of drawn shapes with every kind of mistake."""
    folder = tmp_path_factory.mktemp("report")
    data = make_shapes(folder / "shapes", 1, 40, 96)
    shapes = open_data(data, split="val").val
    results = spoil(shapes.ground_truth())
    (folder / "r.json").write_text(json.dumps(results))
    flags = ("--detections", folder / "r.json", "--data-path", data, "--output-dir", folder, "--report")
    assert validate(*flags) == 0
    return folder, shapes, results


@pytest.fixture(scope="module")
def browser(made):
    with Browser() as browser:
        yield browser


@pytest.fixture
def opened(made, browser):
    browser.errors.clear()
    browser.fetched.clear()
    browser.prefer("light")
    browser.resize(1200, 900)
    browser.open(made[0] / "report.html")
    yield browser
    assert browser.errors == [] and browser.fetched == []


def choose(browser, id, value):
    browser.run(
        f"(() => {{ const s = document.getElementById('{id}'); s.value = '{value}';"
        "s.dispatchEvent(new Event('change')); })()"
    )


def names(browser):
    return browser.run("[...document.querySelectorAll('.card .name')].map(e => e.textContent)")


def await_focus(browser, name):
    """A dialog tells that it was closed a moment later."""
    browser.run(
        "new Promise(done => { const look = () => document.activeElement.className === 'card'"
        f" && document.activeElement.querySelector('.name').textContent === '{name}'"
        " ? done() : setTimeout(look, 9); look(); })"
    )


def test_the_page_says_which_ap_it_means(made):
    text = (made[0] / "report.html").read_text()
    assert "where TIDE&#x27;s own program counts them as 0" in text
    assert "Masks have the area of the mask" in text and "How far COCO&#x27;s AP" in text


def test_the_numbers_are_the_records(made):
    folder, shapes, results = made
    record = json.loads((folder / "record_mAP.json").read_text())
    tables = Tables((folder / "report.html").read_text()).tables
    assert tables["stats"][0][2:] == ["boxes", "masks"] and len(tables["stats"]) == 13
    for name, _, *cells in tables["stats"][1:]:
        for (text, value), iou_type in zip(cells, ("bbox", "segm"), strict=True):
            number = record[iou_type]["stats"][name]
            assert float(value) == number and text == ("n/a" if number == -1 else f"{number:.4f}")
    per_class = {row[0]: row for row in tables["per-class"][1:]}
    assert list(per_class) == list(record["segm"]["per_class"])
    assert {name: float(row[4][1]) for name, row in per_class.items()} == record["segm"]["per_class"]
    mean = np.mean([float(row[3][1]) for row in per_class.values()])
    assert mean == pytest.approx(record["segm"]["stats"]["AP"])
    groups = [float(row[5][1]) for row in tables["by-size"][1:]]
    assert groups == [record["segm"]["stats"][name] for name in ("APs", "APm", "APl")]
    assert {row[0] for row in tables["costs"][1:]} == {*KINDS, "false positives", "false negatives"}
    sizes = np.array([[int(count) for count in row[2:5]] for row in tables["by-size"][1:]])  # objects, found, missed
    areas = [each["area"] for each in shapes.ground_truth()["annotations"] if not each["iscrowd"]]
    assert sizes[:, 0].tolist() == np.histogram(areas, [0, 1024, 9216, 1e9])[0].tolist() and (sizes >= 0).all()
    missed, negatives = (int(row[2]) for row in tables["costs"][1:] if row[0] in ("missed", "false negatives"))
    assert sizes[:, 2].sum() == missed > 0 and sizes[:, 1].sum() == len(areas) - negatives > 0


@needs_browser
def test_the_list_of_images_is_sorted_and_filtered(made, opened):
    _, shapes, results = made
    some = shapes.ground_truth()
    matches = match(some, results, "segm")
    shown = Shown(matches, kinds_of(matches), best_of_all(matches).score)
    mistakes = {image["file_name"]: found for image, found in zip(some["images"], shown.mistakes(), strict=True)}
    opened.click("#more")
    assert len(names(opened)) == 40 and opened.text("#count") == "40 of 40 images"
    totals = [mistakes[name].total() for name in names(opened)]
    assert totals == sorted(totals, reverse=True) and totals[0] > totals[-1]
    choose(opened, "by", "name")
    assert names(opened) == sorted(mistakes)[:24]
    for kind, name in enumerate(KINDS):
        choose(opened, "by-kind", kind)
        with_it = {file for file, found in mistakes.items() if any(key[0] == kind for key in found)}
        assert with_it and set(names(opened)) == with_it, name
    choose(opened, "by-class", 1)  # and the last kind, missed
    assert set(names(opened)) == {file for file, found in mistakes.items() if (5, 1, -1) in found}
    assert opened.run("document.querySelectorAll('.card path.k5:not(.dim)').length") == sum(
        found[5, 1, -1] for found in mistakes.values()
    )
    choose(opened, "by-kind", "")
    choose(opened, "by", "missed")
    assert set(names(opened)) == {file for file, found in mistakes.items() if any(1 in key[1:3] for key in found)}


@needs_browser
def test_an_image_is_enlarged_and_the_keyboard_goes_on(opened):
    first, second = names(opened)[:2]
    opened.click(".card")
    assert opened.run("document.getElementById('viewer').open") and opened.text("#viewer-name") == first
    assert opened.text("#viewer-place") == "1 of 40"
    assert opened.run("document.querySelectorAll('#viewer svg').length") == 2
    wrong = opened.run("document.querySelectorAll('#viewer svg text').length")
    assert wrong == opened.run("document.querySelectorAll('#viewer-list li').length") > 0
    all_outlines = opened.run("document.querySelectorAll('#viewer path').length")
    opened.click("#only")
    assert 0 < opened.run("document.querySelectorAll('#viewer path').length") < all_outlines
    opened.press("ArrowRight")
    assert opened.text("#viewer-name") == second
    opened.press("ArrowLeft")
    opened.press("ArrowLeft")  # there is none before the first
    assert opened.text("#viewer-name") == first
    opened.press("ArrowRight")
    opened.press("Escape")
    await_focus(opened, second)
    assert not opened.run("document.getElementById('viewer').open")
    opened.press("Enter")
    opened.press("Tab", shift=True)  # on the button that leads to the first image
    opened.press("Enter")
    assert opened.text("#viewer-name") == first and "previous" in opened.focused()
    opened.press("ArrowRight")
    assert opened.text("#viewer-name") == second
    for _ in range(30):  # beyond what the list shows at first
        opened.press("ArrowRight")
    last = opened.text("#viewer-name")
    opened.press("Escape")
    await_focus(opened, last)
    assert names(opened)[31] == last


@needs_browser
def test_tables_are_sorted_and_curves_drawn(opened):
    column = "[...document.querySelectorAll('#per-class tbody td:nth-child(5) data')].map(data => +data.value)"
    opened.click("#per-class th:nth-child(5) button")
    rising = opened.run(column)
    assert rising == sorted(rising) and len(set(rising)) == 3
    opened.press("Enter")  # the heading has the focus
    assert opened.run(column) == rising[::-1]
    assert opened.run("document.querySelector('#per-class th:nth-child(5)').ariaSort") == "descending"
    before = opened.run("document.querySelector('#curve .curve').getAttribute('points')")
    choose(opened, "curve-class", 2)
    assert opened.run("document.querySelector('#curve .curve').getAttribute('points')") != before
    choose(opened, "curve-class", 0)
    choose(opened, "curve-class", opened.run("document.querySelector('#curve-class [selected]').value"))
    drawn = opened.run("document.querySelector('#curve .curve').getAttribute('points')")  # as it was drawn in Python
    both = [np.array([point.split(",") for point in points.split()], float) for points in (before, drawn)]
    assert np.abs(both[0] - both[1]).max() < 0.3
    assert "triangle" in opened.run("document.querySelector('#curve').innerText")


@needs_browser
def test_without_a_script_numbers_and_plots_are_there(made, browser):
    browser.ask("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(made[0] / "report.html")
    assert "0." in browser.text("#stats")
    assert browser.run("[...document.querySelectorAll('main svg')].every(e => e.getClientRects().length)")
    assert "needs JavaScript" in browser.text("#images")
    assert browser.run(
        "document.querySelectorAll('label, main select').length > 0 && "
        "[...document.querySelectorAll('label')].every(e => !e.getClientRects().length)"
    )
    browser.ask("Emulation.setScriptExecutionDisabled", value=False)


@needs_browser
def test_the_keyboard_reaches_everything(opened):
    wanted = {"by-kind", "by-class", "by", "more", "curve-class"}
    reached, cards, headings = set(), 0, 0
    for _ in range(120):
        opened.press("Tab")
        reached.add(opened.run("document.activeElement.id"))
        cards += opened.run("document.activeElement.className") == "card"
        headings += opened.run("document.activeElement.matches('th button')")
        if wanted <= reached and headings >= 9:
            break
    assert wanted <= reached and cards == 24 and headings == 9
    opened.run("document.getElementById('by-kind').focus()")
    opened.press("m")
    assert opened.run("document.getElementById('by-kind').selectedOptions[0].text") == "missed"
    assert opened.text("#count") != "40 of 40 images"
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert opened.run(outline) == "solid"
    opened.run("document.querySelector('.card').focus()")
    opened.press("Enter")
    inside = set()
    for _ in range(6):
        inside.add(opened.run("document.activeElement.id"))
        opened.press("Tab")
    assert {"next", "close", "only"} <= inside


CONTRAST = """(selector) => {
    const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const light = (color, under) => {
        canvas.fillStyle = under; canvas.fillRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(v => v / 255)
            .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    };
    const ground = (e) => { const c = getComputedStyle(e).backgroundColor;
        return c === "rgba(0, 0, 0, 0)" && e.parentElement ? ground(e.parentElement) : c; };
    return Math.min(...[...document.querySelectorAll(selector)].filter(e => e.getClientRects().length).map(e => {
        const [a, b] = [light(getComputedStyle(e).color, ground(e)), light(ground(e), ground(e))];
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    }));
}"""


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_a_phone_in_light_and_dark(opened, scheme):
    opened.prefer(scheme)
    opened.resize(360, 700, mobile=True)
    assert not opened.too_wide()
    for selector in ("p", "td", "th", "th button", ".soft", ".said", ".name", "label", "select", "nav a", "figcaption"):
        assert opened.run(f"({CONTRAST})('{selector}')") >= 4.5, selector
    # what is wide scrolls by itself
    assert opened.run(
        "[...document.querySelectorAll('table, svg, .card')].every("
        "e => e.closest('.scroll') || e.getBoundingClientRect().right <= innerWidth)"
    )
    opened.click(".card")
    assert not opened.too_wide() and opened.run(f"({CONTRAST})('#viewer li, #viewer button, #viewer h3')") >= 4.5
    assert opened.run("document.getElementById('viewer').getBoundingClientRect().right <= innerWidth")
    # the two images stand one over the other
    tops = opened.run("[...document.querySelectorAll('#viewer figure')].map(e => e.getBoundingClientRect().top)")
    assert tops[1] > tops[0] + 100


HOSTILE = {3: "</script><script>console.error(1)</script>", 5: "\u202ew" + "o" * 300 + "rd", 8: "\U0001f600"}


def write_odd(folder):
    """Data in COCO layout with text ids, names that are not ASCII, and HOSTILE classes, two of them without objects."""
    write_coco(folder, HOSTILE)
    content = json.loads((folder / "instances_val.json").read_text())
    for n, image in enumerate(content["images"]):
        (folder / "images" / image["file_name"]).rename(folder / "images" / f"b<i>ld \u00e9 {n}.png")
        image["file_name"] = f"b<i>ld \u00e9 {n}.png"
        for annotation in content["annotations"]:
            if annotation["image_id"] == image["id"]:
                annotation["image_id"], annotation["category_id"] = f"pic {n}", 3
        image["id"] = f"pic {n}"
    (folder / "instances_val.json").write_text(json.dumps(content))
    return folder


@needs_browser
def test_odd_names_no_detection_and_images_that_can_not_be_read(tmp_path, capsys, browser):
    data = write_odd(tmp_path / "data")
    (data / "images" / "b<i>ld \u00e9 1.png").write_bytes(b"no image")
    for name, results in (
        ("none", []),
        ("boxes", [{"image_id": "pic 0", "category_id": 5, "score": 0.75, "bbox": [4, 4, 20, 24]}]),
    ):
        (tmp_path / "r.json").write_text(json.dumps(results))
        flags = ("--detections", tmp_path / "r.json", "--data-path", data, "--output-dir", tmp_path / name)
        assert validate(*flags, "--report") == 1
        out, err = capsys.readouterr()
        assert "3 of 4 images to look at" in out and "not in the report" in err and "\u00e9 1.png" in err
        browser.errors.clear()
        browser.resize(360, 700, mobile=True)
        browser.open(tmp_path / name / "report.html")
        assert browser.text("#count") == "4 of 4 images" and not browser.too_wide()
        widths = "[...document.querySelectorAll('td, th')].map(e => e.getBoundingClientRect().width)"
        assert max(browser.run(widths)) < 420  # also of the class with the long name
        assert "1 could not be read" in browser.text("#images p")
        unread = "[...document.querySelectorAll('.card')].find(e => !e.querySelector('svg'))"
        browser.run(unread + ".click()")
        assert browser.text("#viewer-name") == "b<i>ld \u00e9 1.png" and "not in the page" in browser.text("#viewer")
        assert browser.run("document.querySelectorAll('#viewer-list li').length") == 1
        assert browser.errors == [] and browser.fetched == []
    assert validate(*flags, "--report", "--strict") == 2


def test_the_page_stays_small(made, tmp_path, monkeypatch):
    _, shapes, results = made
    stats = {"segm": evaluated(shapes, results)}
    whole = write_report(tmp_path, Evaluated("r", stats, results, shapes), images=1000)
    assert whole.drawn == whole.images == 40
    monkeypatch.setattr(gallery_module, "SIDES", (96, 60, 30))
    monkeypatch.setattr(gallery_module, "ROOM", 80_000)
    small = write_report(tmp_path, Evaluated("r", stats, results, shapes))
    assert small.size < whole.size and small.drawn == 40
    assert sum(len(json.dumps(drawing)) for drawing in json.loads(page_data(small.path))["drawings"]) < 82_000
    monkeypatch.setattr(gallery_module, "ROOM", 20_000)  # not enough for the smallest images
    assert 0 < write_report(tmp_path, Evaluated("r", stats, results, shapes)).drawn < 40
    monkeypatch.setattr(gallery_module, "ROWS_ROOM", 400)
    few = write_report(tmp_path, Evaluated("r", stats, results, shapes))
    assert 0 < few.drawn < 20 and "with fewest mistakes are not listed" in few.path.read_text()
    none = write_report(tmp_path, Evaluated("r", stats, results, shapes), images=0)
    assert none.drawn == 0 and "0 of the 40 images" in none.path.read_text()


def test_without_detections_or_objects_nothing_is_said_of_them(made, tmp_path):
    _, shapes, results = made
    none = write_report(tmp_path, Evaluated("r", {"segm": evaluated(shapes, [])}, [], shapes)).path.read_text()
    assert "no detection at all" in none and "F1 over all classes is highest" not in none
    size = shapes.sizes[0].tolist()
    mask = {"size": size, "counts": coco_mask.encode(np.zeros(size, np.uint8, order="F"))["counts"].decode()}
    blank = [
        {"image_id": shapes.image_id(0), "category_id": 1, "score": 0.9, "bbox": [1, 1, 5, 5], "segmentation": mask}
    ]
    wrong = write_report(tmp_path, Evaluated("r", {"segm": evaluated(shapes, blank)}, blank, shapes)).path.read_text()
    assert "1 detection of the kind background: an empty mask" in wrong and "empty mask" not in none
    assert "with a score of 0.900 or more: no detection is right at any score" in wrong
    data = write_coco(tmp_path / "data")
    content = json.loads((data / "instances_val.json").read_text())
    (data / "instances_val.json").write_text(json.dumps({**content, "annotations": []}))
    empty = open_data(data, split="val").val
    text = write_report(tmp_path, Evaluated("r", {"segm": evaluated(empty, [])}, [], empty)).path.read_text()
    assert "no object to find: there is no AP" in text and "nothing stands out" not in text
    for ap50, said in ((0.98, "nothing stands out"), (0.02, "AP at IoU 0.5 is 0.020, and no kind of mistake")):
        assert said in str(sections.advice_section([], ap50))


def test_detections_inside_crowds_are_left_out_and_it_is_said(tmp_path):
    data = write_coco(tmp_path / "data")
    content = json.loads((data / "instances_val.json").read_text())
    first = content["annotations"][0]
    content["annotations"][0] = {**first, "iscrowd": 1}
    (data / "instances_val.json").write_text(json.dumps(content))
    some = open_data(data, split="val").val
    every = some.ground_truth()["annotations"]
    results = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "score": 0.75, "bbox": a["bbox"]} for a in every
    ]
    results[-1]["score"] = 1.5
    stats = {"bbox": evaluate_results(some.ground_truth(), results, ["bbox"])["bbox"]}
    text = write_report(tmp_path, Evaluated("r", stats, results, some)).path.read_text()
    assert sum(int(row[1]) for row in Tables(text).tables["bins"][1:]) == len(every) - 1
    assert text.count("1 detection inside a crowd region is left out") == 2  # of the costs and the calibration
    assert text.count("with a score of 0.750 or more") == 3  # costs, images, confusion
    assert "1 scores outside 0 to 1 are in the first or last row" in text
    assert "All 4 images can be looked at" in text and "2 detections inside crowd regions" in sections.in_crowds(2)
    assert sections.in_crowds(0) == ""


def evaluated(data_set, results):
    return evaluate_results(data_set.ground_truth(), results, ["segm"])["segm"]


def page_data(path):
    return path.read_text().split('id="data">')[1].split("</script>")[0]


def test_a_matrix_of_many_classes_shows_the_worst(made, monkeypatch, tmp_path):
    _, shapes, results = made
    monkeypatch.setattr(sections, "WHOLE_MATRIX", 2)
    monkeypatch.setattr(sections, "PART_OF_MATRIX", 2)
    monkeypatch.setattr(sections, "PAIRS", 1)
    made_now = write_report(tmp_path, Evaluated("r", {"segm": evaluated(shapes, results)}, results, shapes))
    text = made_now.path.read_text()
    assert len(Tables(text).tables["confusion-matrix"]) == 4 and "2 of 3 classes with most mistakes" in text
    assert "other pairs are not listed." in text


def test_with_weights_it_is_about_the_images_that_were_evaluated(tmp_path, capsys):
    data, weights = write_coco(tmp_path / "data"), write_checkpoint(tmp_path / "model.pth", width=8)
    (data / "images" / "1.png").write_bytes(b"no image")
    flags = ("--weights-path", weights, "--data-path", data, "--output-dir", tmp_path / "out")
    progress = {"curve": torch.tensor([(3.0, 0.1), (2.0, 0.1)]).repeat_interleave(10, 0), "steps_per_epoch": 10}
    save_checkpoint(weights, {**load_file(weights), "progress": progress})
    assert validate(*flags, "--report", "--report-images", 2) == 1
    assert "2 of 3 images to look at" in capsys.readouterr().out
    advice = (tmp_path / "out" / "report.html").read_text().split("<li>")[1]
    assert advice.startswith("<b>train on</b> (loss 2.000 in the last 10 of 20 steps")
    rows = json.loads(page_data(tmp_path / "out" / "report.html"))["rows"]
    assert sorted(row[0] for row in rows) == ["0.png", "2.png", "3.png"]
    assert validate(*flags, "--report-images", 2) == 2
    assert "--report" in capsys.readouterr().err


def test_a_run_without_the_flag_writes_no_page(made, tmp_path):
    folder, *_ = made
    flags = ("--detections", folder / "r.json", "--data-path", folder / "shapes", "--output-dir", tmp_path)
    assert validate(*flags) == 0 and not (tmp_path / "report.html").exists()
