"""tests/service/test_docs.py - what the documents name is there: options, commands, files, metrics."""
import glob
import os
import re
import subprocess

import pytest

from service import BUILD, ROOT

DOCS = sorted(glob.glob(os.path.join(ROOT, "docs", "*.md"))) + [
    os.path.join(ROOT, *n.split("/")) for n in ("README.md", "slurm/README.md",
                                                "k8s-mpi-operator/README.md")]
HELP = [["rankserve-gateway"], ["rankservectl", "up"], ["rankservectl", "render"],
        ["rankservectl", "status"], ["rankservectl", "validate"], ["rankservectl", "chat"],
        ["rankservectl", "slurm"], ["rankservectl", "sim"], ["rankservectl", "bench"],
        ["rankservectl", "slurm", "logs"],
        ["rankservectl", "slurm", "cancel"]]
OTHERS = {"--nodes", "--ntasks", "--overlap", "--jobid", "--gpus-per-node", "--no-kill", "--requeue",
          "--signal", "--batch", "--mpi", "--timeout", "--server-side", "--for", "--from-file",
          "--enable-recovery", "--long", "--time", "--export"}


@pytest.fixture(scope="module")
def options():
    said = ""
    for program, *words in HELP:
        said += subprocess.run([os.path.join(BUILD, program), *words, "--help"], text=True,
                               capture_output=True).stdout
    return set(re.findall(r"--[a-z][a-z0-9-]+", said.replace("--[no-]", "--")))


@pytest.mark.parametrize("path", DOCS, ids=lambda p: os.path.relpath(p, ROOT))
def test_options_and_links_are_there(path, options):
    with open(path) as f:
        text = f.read()
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text))
    assert named <= options | OTHERS, named - options - OTHERS
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in link:
            assert os.path.exists(os.path.join(os.path.dirname(path), link)), link
    commands = set(re.findall(r"rankservectl ([a-z]+)", text))
    known = subprocess.run([os.path.join(BUILD, "rankservectl"), "--help"], text=True,
                           capture_output=True).stdout
    for c in commands - {"here", "elsewhere"}:
        assert re.search(rf"^ +{c}\b", known, re.M), c


def test_files_and_metrics_of_the_operations_page_are_there():
    with open(os.path.join(ROOT, "docs", "OPERATIONS.md")) as f:
        text = f.read()
    source = ""
    for path in glob.glob(os.path.join(ROOT, "src", "*", "*.c")) + \
            glob.glob(os.path.join(ROOT, "scripts", "*")):
        with open(path) as f:
            source += re.sub(r'"\s*\n\s*"', "", f.read())
    for metric in re.findall(r"`(llm_d_\w+)`", text):
        assert f'"{metric}"' in source, metric
    # The first column of the table of failures is what programs say.
    table = text.split("## When something fails")[1].split("## Keys")[0]
    for row in re.findall(r"^\| (.+?) \|", table, re.M)[2:]:
        for words in re.findall(r"`([^`]+)`", row):
            for part in re.split(r"\b(?:\d+|N|M|JOB|\.\.\.)\b|\.\.\.|\"", words):
                if len(part.strip(" ,.=")) > 3:
                    assert part.strip(" ,.=") in source, (words, part)
