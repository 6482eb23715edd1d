"""The rank explorer answers to the keyboard, and says what the package computes."""

import re

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.cbook import get_sample_data

from lorabook.low_rank import energy, factor_storage, low_rank_approximation, relative_error
from tests.book.conftest import SITE

PAGE = SITE / "chapters" / "02-rank.html"


@pytest.fixture(scope="module")
def photo():
    return torch.from_numpy(plt.imread(get_sample_data("grace_hopper.jpg", asfileobj=False)).mean(axis=2) / 255)


def test_every_position_shows_the_packages_own_values(visit, photo):
    page = visit(PAGE).page
    slider, text = page.locator(".lora-explorer input"), page.locator(".lora-explorer output")
    shares = energy(torch.linalg.svdvals(photo))
    slider.focus()
    page.keyboard.press("Home")
    pictures = set()
    for position in range(int(slider.get_attribute("max")) + 1):
        rank = int(re.match(r"rank (\d+):", text.inner_text())[1])
        error = relative_error(photo, low_rank_approximation(photo, rank))
        storage = factor_storage(rank, *photo.shape) / photo.numel()
        assert text.inner_text() == f"rank {rank}: energy {shares[rank - 1]:.1%}, error {error:.1%}, storage {storage:.1%}"
        assert slider.input_value() == str(position)
        assert slider.get_attribute("aria-valuetext") == text.inner_text()
        pictures.add(page.locator(".lora-explorer img").get_attribute("src"))
        page.keyboard.press("ArrowRight")
    assert rank == 512
    assert len(pictures) == int(slider.get_attribute("max")) + 1


def test_focus_is_visible(visit):
    page = visit(PAGE).page
    page.locator(".lora-explorer input").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_without_scripts_a_picture_and_its_numbers_remain(visit):
    page = visit(PAGE, scripts=False).page
    assert page.locator(".lora-explorer img").is_visible()
    assert page.locator(".lora-explorer output").text_content().startswith("rank 20:")
    assert not page.locator(".lora-explorer input").is_visible()
