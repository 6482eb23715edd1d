"""Settings for the whole suite."""

import os

# The Makefile silences progress bars. The tests of the bar want to see it, and tqdm, which comes with torch, reads this when imported.
os.environ.pop("TQDM_DISABLE", None)

import pytest
import torch
from hypothesis import settings

# No deadline: a busy machine is not a bug. No database: what runs here runs the same elsewhere.
settings.register_profile("lorabook", deadline=None, database=None, max_examples=50)
settings.load_profile("lorabook")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Shapes are so small here that threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
