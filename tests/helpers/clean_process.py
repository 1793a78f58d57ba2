"""Processes that load saved folders as a stranger would: forks of one that knows transformers and not cook.

Importing torch and transformers takes seconds, and so does what transformers makes for the first model.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.helpers.server import Server, serve

LOAD = """
import sys
import transformers
auto_class, folder = sys.argv[1:]
try:
    getattr(transformers, auto_class).from_pretrained(folder)
except Exception as error:
    print("refused:", error)
assert "cook" not in sys.modules, "cook was imported"
"""


class Strangers(Server):
    """`with Strangers() as clean_processes: clean_processes.run(source, "argument")`."""

    def __init__(self) -> None:
        super().__init__("tests.helpers.clean_process", CUDA_VISIBLE_DEVICES="")

    def run(self, source: str, *argv: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
        """What `python -c source argv` would do in this folder; all that it prints is in `stderr`."""
        words = list(map(str, argv))
        done = self.order(source=source, argv=words, folder=str(folder))
        return subprocess.CompletedProcess(words, done.code, stderr=done.output)

    def refusal(self, auto_class: str, folder: Path) -> str | None:
        """How a process that never imports cook fails to load a folder; None where it does not."""
        done = self.run(LOAD, auto_class, folder, folder=folder)
        assert done.returncode == 0, done.stderr
        return done.stderr.partition("refused:")[2] or None

    def start(self, script: Path) -> subprocess.CompletedProcess[str]:
        """In the place of `cook.model.hub.verify._start`."""
        from cook.model.hub.verify import STRANGER

        return self.run(STRANGER, script, folder=script.parent)


def _call(source: str, argv: list[str], folder: str) -> int:
    os.chdir(folder)
    sys.argv = ["-c", *argv]
    exec(source, {"__name__": "__main__"})
    return 0


def _load_one() -> None:
    import transformers
    from transformers import BertConfig, BertForSequenceClassification

    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    sizes = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4}
    with tempfile.TemporaryDirectory() as folder:
        BertForSequenceClassification(BertConfig(**sizes, vocab_size=4)).save_pretrained(folder)
        BertForSequenceClassification.from_pretrained(folder)


if __name__ == "__main__":
    _load_one()
    serve(_call)
