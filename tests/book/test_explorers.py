"""Explorers answer to the keyboard and to menus, and say what the package computes."""

import json
import re
from itertools import pairwise

import matplotlib.pyplot as plt
import pytest
import torch
import vl_convert
from matplotlib.cbook import get_sample_data

from lorabook.figures import explorers, vega
from lorabook.figures.slider import Frame, PictureSlider
from lorabook.figures.style import INK
from lorabook.low_rank import energy, factor_storage, low_rank_approximation, relative_error
from lorabook.measure.costs import preset_targets
from lorabook.measure.counting import count_lora
from lorabook.measure.flops import training_flops
from lorabook.measure.memory import memory_ledger
from lorabook.measure.presets import PRESETS
from tests.book.conftest import ROOT, SITE

CHAPTERS = SITE / "chapters"
PAGES = {"rank": "02-rank", "spectrum": "07-update", "calculator": "09-counting", "alpha-eta": "10-alpha", "accuracy": "11-fine-tuning"}


def drawn(visit, name, **how):
    """A page whose explorer has come near and is alive, and the explorer."""
    seen = visit(CHAPTERS / f"{PAGES[name]}.html", **how)
    explorer = seen.page.locator(".lora-vega")
    for _ in range(10):  # sections on the way get their height as they come near
        explorer.scroll_into_view_if_needed()
        seen.page.wait_for_timeout(200)
    seen.page.wait_for_selector(".lora-vega.live", timeout=60_000)
    return seen, explorer


def words(explorer):
    return explorer.locator("output").text_content()


def steps(page, explorer):
    """The slider's words at each position, by keyboard alone."""
    slider = explorer.locator("input[type=range]")
    slider.focus()
    page.keyboard.press("Home")
    for position in range(int(slider.get_attribute("max")) + 1):
        page.wait_for_function("([one, position]) => one.value === position", arg=[slider.element_handle(), str(position)])
        page.wait_for_timeout(150)
        yield words(explorer), slider.get_attribute("aria-valuetext")
        page.keyboard.press("ArrowRight")


@pytest.mark.parametrize("name", PAGES)
def test_vega_comes_only_when_an_explorer_comes_near(visit, name):
    seen = visit(CHAPTERS / f"{PAGES[name]}.html")
    assert not [url for url in seen.requests if "vega" in url]
    seen, _ = drawn(visit, name)
    assert [url for url in seen.requests if url.endswith("_static/vega.js")]
    assert seen.elsewhere == []
    assert seen.complaints == []


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [390, 1280])
def test_a_chart_fits_its_page_and_its_words_are_large_enough(visit, name, width):
    seen, explorer = drawn(visit, name, width=width)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    sizes = explorer.evaluate(
        """one => [...one.querySelectorAll(".view svg text")].filter(text => text.textContent)
        .map(text => parseFloat(getComputedStyle(text).fontSize) * Math.hypot(text.getScreenCTM().a, text.getScreenCTM().b))"""
    )
    assert len(sizes) > 5
    assert min(sizes) > 9


@pytest.mark.parametrize("name", PAGES)
def test_focus_is_visible_and_every_control_has_a_name(visit, name):
    seen, explorer = drawn(visit, name)
    controls = explorer.locator("input, select")
    for index in range(controls.count()):
        controls.nth(index).focus()
        seen.page.keyboard.press("ArrowLeft")
        assert controls.nth(index).evaluate("one => getComputedStyle(one).outlineStyle") == "solid"
        assert controls.nth(index).evaluate("one => one.labels[0].innerText").strip()


@pytest.mark.parametrize("name", PAGES)
def test_without_scripts_a_picture_and_its_words_remain(visit, name):
    explorer = visit(CHAPTERS / f"{PAGES[name]}.html", scripts=False).page.locator(".lora-vega")
    picture = explorer.locator(".view > svg[role=img]")
    assert picture.is_visible()
    assert len(picture.get_attribute("aria-label")) > 40
    assert explorer.locator("input:visible, select:visible").count() == 0
    assert explorer.locator("output").text_content() or picture.locator("text").count() > 20


def test_the_rank_explorer_shows_the_packages_values_at_every_position(visit):
    photo = torch.from_numpy(plt.imread(get_sample_data("grace_hopper.jpg", asfileobj=False)).mean(axis=2) / 255)
    seen, explorer = drawn(visit, "rank")
    shares = energy(torch.linalg.svdvals(photo))
    pictures = set()
    for said, heard in steps(seen.page, explorer):
        rank = int(re.match(r"rank (\d+):", said)[1])
        error = relative_error(photo, low_rank_approximation(photo, rank))
        storage = factor_storage(rank, *photo.shape) / photo.numel()
        assert said == heard == f"rank {rank}: energy {shares[rank - 1]:.1%}, error {error:.1%}, storage {storage:.1%}"
        pictures.add(explorer.locator("image").get_attribute("href") or explorer.locator("image").get_attribute("xlink:href"))
    assert rank == 512
    assert len(pictures) == 17


def test_the_spectrum_explorer_shows_the_experiments_layers(visit):
    layers = json.loads((ROOT / "assets/results/spectra.json").read_text())["runs"][0]["layers"]
    seen, explorer = drawn(visit, "spectrum")
    said = [text for text, _ in steps(seen.page, explorer)]
    assert len(said) == len(layers)
    for text, (path, layer) in zip(said, layers.items(), strict=True):
        assert text.startswith(f"{path}: effective rank {layer['effective_rank']:.0f} ")
        assert f"first 8 hold {layer['energy']['8']:.0%} " in text


def test_along_the_curve_one_run_stays_and_one_parts(visit):
    seen, explorer = drawn(visit, "alpha-eta")
    said, dashed = [], []
    for text, _ in steps(seen.page, explorer):
        said.append(text)
        dashed.append(explorer.locator(".view path[stroke-dasharray='6,6']").last.get_attribute("d"))
    assert len(said) == 7
    assert len(set(dashed)) == 1  # the equivalent run is the same everywhere
    assert all(one != other for one, other in pairwise(said))
    assert said[3].startswith("p = 1: ")


def test_the_accuracy_explorer_shows_every_seed(visit):
    runs = json.loads((ROOT / "assets/results/methods_text_to_sql.json").read_text())["runs"]
    seen, explorer = drawn(visit, "accuracy")
    task, asked, method = (explorer.locator("select").nth(index) for index in range(3))
    task.select_option("text to SQL")
    for split, what in (("test", "tables it trained on"), ("unseen", "tables never seen")):
        asked.select_option(what)
        for name in {run["arm"] for run in runs if run["stage"] == "test" and run["kind"] != "untouched"}:
            method.select_option(name)
            mine = [run for run in runs if run["arm"] == name and run["stage"] == "test"]
            scores = ", ".join(f"{100 * run[split]['execution_accuracy']:.1f}" for run in mine)
            seen.page.wait_for_timeout(100)
            assert words(explorer).startswith(f"{name}: {mine[0]['trainable']:,} numbers train")
            assert words(explorer).endswith(f"{scores} % right.")


@pytest.mark.parametrize("model", ["gpt2", "roberta-large", "llama-3-8b", "gpt3-175b"])
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_the_calculator_equals_the_package(visit, model, precision):
    shape = PRESETS[model]
    seen, explorer = drawn(visit, "calculator")
    menus = {one: explorer.locator(f"select[name={one}]") for one in ("model", "targets", "precision")}
    menus["model"].select_option(model)
    menus["precision"].select_option(precision)
    for targets in ("query and value", "attention", "all linear"):
        menus["targets"].select_option(targets)
        ranks = []
        for said, rank in steps(seen.page, explorer):
            ranks.append(int(rank))
            found = dict(one.split(": ") for one in said.split("; "))
            assert len(found) == 21
            settings = {"rank": int(rank), "targets": preset_targets(shape)[targets]}
            for label, method in (("full", "full"), ("LoRA", "lora"), ("QLoRA", "qlora")):
                ledger = memory_ledger(shape, method, precision=precision, **settings)
                assert found[f"{label}, bytes in all"] == f"{ledger.total:,}"
                assert found[f"{label}, bytes of optimizer"] == f"{ledger.optimizer:,}"
            assert found["LoRA, numbers that train"] == f"{count_lora(shape, targets=settings['targets'], rank=int(rank)).trainable:,}"
            assert found["LoRA, operations per token"] == f"{training_flops(shape, 'lora', **settings).total:,}"
        assert ranks == [2**power for power in range(9)]


SLIDERS = ["04-factorizing", "05-likelihood", "12-what-it-learns"]


@pytest.mark.parametrize("name", SLIDERS)
def test_pictures_behind_a_slider_come_when_it_is_near_and_answer_to_the_keyboard(visit, name):
    seen = visit(CHAPTERS / f"{name}.html")
    explorer = seen.page.locator(".lora-explorer:has(script[data-chart])")
    file = explorer.locator("script[data-chart]").get_attribute("data-chart").rpartition("/")[2]
    assert not [url for url in seen.requests if url.endswith(file)]
    for _ in range(10):  # sections on the way get their height as they come near
        explorer.scroll_into_view_if_needed()
        seen.page.wait_for_timeout(200)
    explorer.locator("input").wait_for()
    assert len([url for url in seen.requests if url.endswith(file)]) == 1
    assert explorer.locator(".view [aria-label], .view [alt]").count() == 1
    said, pictures = zip(*((text, explorer.locator(".view").inner_html()) for text, _ in steps(seen.page, explorer)), strict=True)
    assert len(set(said)) == len(set(pictures)) == int(explorer.locator("input").get_attribute("max")) + 1 > 5
    assert explorer.locator("input").evaluate("one => getComputedStyle(one).outlineStyle") == "solid"
    assert seen.elsewhere == seen.complaints == []
    still = visit(CHAPTERS / f"{name}.html", scripts=False).page.locator(".lora-explorer:has(script[data-chart])")
    assert still.locator(".view > *").first.is_visible()
    assert still.locator("output").text_content() in said
    assert not still.locator("input").is_visible()


def test_a_slider_in_a_notebook_holds_its_pictures_itself(browser, tmp_path):
    cell = PictureSlider([Frame([[shade, 1.0]], f"shade {shade}", "two dots") for shade in (0.0, 0.5, 1.0)], "Shade", start=1)._repr_html_()
    (tmp_path / "cell.html").write_text(f"<!doctype html><html lang=en><meta charset=utf-8><title>x</title><body>{cell}", encoding="utf-8")
    page = browser.new_page()
    page.goto((tmp_path / "cell.html").as_uri())
    page.locator("input").wait_for()
    page.locator("input").press("ArrowRight")
    assert page.locator("output").text_content() == page.locator("input").get_attribute("aria-valuetext") == "shade 1.0"
    page.close()


def test_in_a_notebook_without_vl_convert_vega_comes_from_altairs_own_address(browser, monkeypatch, tmp_path):
    monkeypatch.delenv(vega.SITE, raising=False)
    monkeypatch.setattr(vega, "find_spec", lambda name: None)
    runs = [explorers.Run("LoRA", "LoRA", 100, 0, 0.01, {"seen": 0.5})]
    cell = explorers.accuracy({"sql": runs}, colors={"LoRA": INK}, start="LoRA")._repr_html_()
    (tmp_path / "cell.html").write_text(f"<!doctype html><html lang=en><meta charset=utf-8><title>x</title><body>{cell}", encoding="utf-8")
    page = browser.new_page()
    asked = []

    def answer(route):
        asked.append(route.request.url)
        last = "vega-embed" in asked[-1]  # the bundle holds all three
        route.fulfill(content_type="text/javascript", body=vl_convert.javascript_bundle() if last else "")

    page.route(re.compile("^https:"), answer)
    page.goto((tmp_path / "cell.html").as_uri())
    page.wait_for_selector(".lora-vega.live")
    assert [re.search(r"npm/([a-z-]+)@\d", url)[1] for url in asked] == ["vega", "vega-lite", "vega-embed"]
    assert page.locator("output").text_content() == "LoRA: 100 numbers train at a learning rate of 0.01; 50.0 % right."
    page.close()


@pytest.mark.parametrize(("lifted", "missing"), [(False, r"vega@[\d.]+"), (True, r"absent\.js")])
def test_where_a_file_cannot_be_loaded_the_words_name_it(browser, monkeypatch, tmp_path, lifted, missing):
    monkeypatch.delenv(vega.SITE, raising=False)
    monkeypatch.setattr(vega, "find_spec", lambda name: None)
    cell = explorers.alpha_eta({1.0: {"a": [1.0]}}, {1.0: "one"}, colors={"a": INK}, start=1.0)._repr_html_()
    if lifted:  # as on a page of the book: the chart is a file, and it is not there
        cell = re.sub(r'data-chart="">.*?</script>', 'data-chart="_charts/absent.js"></script>', cell, flags=re.DOTALL)
    (tmp_path / "cell.html").write_text(f"<!doctype html><html lang=en><meta charset=utf-8><title>x</title><body>{cell}", encoding="utf-8")
    page = browser.new_page()
    page.route(re.compile("^https:"), lambda route: route.abort())
    page.goto((tmp_path / "cell.html").as_uri())
    page.wait_for_function("document.querySelector('output').textContent.includes('loaded')")
    assert re.fullmatch(rf"one \(The controls need {missing}, which could not be loaded\.\)", page.locator("output").text_content())
    page.close()
