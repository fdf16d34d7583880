"""Documents of users as text for a prompt.

    from edge.documents import prompt_with, read_document

    report = read_document("report.pdf")
    llm.chat([{"role": "user", "content": prompt_with([report], "Which risks does it name?")}])

In: files of text, Markdown, HTML, PDF and Word, and a question. Out: a `Document` for each, and the message that puts
them before the question as GLM-4's official demo does. Nothing here touches the network.
"""

from edge.documents.document import Document, prompt_with
from edge.documents.reader import read_document

__all__ = ["Document", "prompt_with", "read_document"]
