"""Execute a notebook in a kernel of another environment: `python -m tests.book.run_notebook NOTEBOOK FOLDER KERNELS`.

It prints the count of each cell that ran.

A process of its own: what the driver imports is not what the notebook's kernel can import, and its sockets close with it.
"""

import json
import sys

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

TIMEOUT_SECONDS = 600


def run_notebook(path: str, folder: str, kernels: str) -> list[int]:
    """Run the notebook in the folder, in the kernel named "fresh"; an error in a cell is an error here."""
    notebook = nbformat.read(path, as_version=4)
    manager = KernelManager(kernel_name="fresh", kernel_spec_manager=KernelSpecManager(kernel_dirs=[kernels]))
    settings = {"timeout": TIMEOUT_SECONDS, "startup_timeout": 120, "resources": {"metadata": {"path": folder}}}
    NotebookClient(notebook, km=manager, **settings).execute()
    return [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]


if __name__ == "__main__":
    print(json.dumps(run_notebook(*sys.argv[1:])))  # noqa: T201
