"""The `guide` command: show the pages of the guide."""

from importlib.resources import files
from pathlib import Path

import click

from batch_platform.cli import terminal
from batch_platform.declaration.errors import WrongUseError, named

PAGES = {  # each is a Markdown file in the folder `guide`, in the order in which to read them
    "concepts": "What is a partition, a champion, the ledger? What is promised?",
    "demos": "Is there an example from my industry?",
    "your_data": "What can be read, and what does `new` propose?",
    "declaring": "What does the YAML look like, and what does it become? How is input declared?",
    "keys": "Which keys do models, challengers and predictions have?",
    "more_keys": "Which keys do monitoring, reports, runs and engines have?",
    "features": "How do I keep out the future? What if there is no time, or input breaks?",
    "sources": "Which files, databases, stores such as S3, and tables can be read, and how?",
    "models": "Which models can I use, PyTorch too? Which one serves, and how do I go back?",
    "refinements": "Can I trust a probability? How sure is a number? Why is a score so high?",
    "monitoring": "How good were the scores? How do I get alerts by Slack or mail, and a report?",
    "drift": "Have features or scores moved? How good are scores without labels?",
    "acting": "Whom do I call? How do scores reach SQL, files, S3, databases and assets?",
    "from_python": "How do I declare, run and read a pipeline in a script or a notebook?",
    "dbt": "How do dbt models and a pipeline build on each other?",
    "scheduling": "What runs when, and what stops? What happens to late and corrected data?",
    "production": "How does it run with Docker, systemd, Kubernetes, and in Python of my own?",
    "home": "How do I back up, restore, upgrade, clean up, and let others read?",
    "security": "What can SQL, models and readers do? How do I delete a customer?",
    "tables": "Which tables are there? What can I ask them?",
    "commands": "What does each command do?",
    "extending": "How do I add a source, a metric, a measure, a flavour, an engine or a sink?",
    "performance": "How fast is it, and with how much memory? How large may a table be?",
    "scaling_out": "What if my table outgrows one machine?",
    "clusters": "What if the cluster is Spark Connect, YARN or Kubernetes?",
    "prediction_files": "What if there are too many predictions for DuckDB?",
    "faults": "What happens when a process is killed or data are broken?",
    "architecture": "How is it built, and how do I contribute?",
    "changelog": "What is new?",
}


@terminal.command("guide", "guide", "guide monitoring")
@click.argument("page", required=False)
def guide_command(_folder: Path | None, page: str | None) -> None:
    """Show a page of the guide, or the list of its pages."""
    if page is None:
        terminal.report(PAGES)
        terminal.show_table(("page", "answers"), [*PAGES.items()])
        terminal.say("Next: batch-platform guide concepts")
        return
    about = [name for name, question in PAGES.items() if page.lower() in question.lower()]
    if page not in PAGES and about:
        msg = f"There is no page {page!r}."
        raise WrongUseError(msg, hint=f"read {' or '.join(about)}.")
    named(page, PAGES, f"There is no page {page!r}; there are")
    from rich.markdown import Markdown

    text = (files("batch_platform") / "guide" / f"{page}.md").read_text(encoding="utf-8")
    terminal.report({"page": page, "text": text})
    terminal.out.print(Markdown(text) if terminal.out.is_terminal else text, markup=False)
