"""Tables of text, for files and for terminals.

Public: markdown, columns.
"""


def markdown(head, rows, aligned=False):
    """A Markdown table, one line a row and a newline at its end; cells may be of any type.

    aligned: pad its columns, so that it can be read on a terminal, too.
    """
    head, *rows = ([str(cell).strip() for cell in line] for line in (head, *rows))
    widths = [max(map(len, column)) if aligned else 0 for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * (width or 3) for width in widths], *rows]
    return "".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |\n" for line in lines
    )


def columns(lines, widths=None):
    """Lines of text whose cells stand below each other: a list of str.

    lines: lists of as many str each; widths: characters of each column with the gap behind it (default: the longest
    cell and two).
    """
    if widths is None:
        widths = [max(map(len, column)) + 2 for column in zip(*lines, strict=True)]
    return ["".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
