"""One self-contained page that says what a file is and how well it answers: HTML, its pictures inside.

Takes values, gives text. Pages need no network and no script; they fit a phone and a desk.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

MOST_DB = 80  # a full bar; float16 has some 66

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --good: #1a7f37; --bad: #cf222e; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; } caption { text-align: left; padding-bottom: .3rem; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .6rem; text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
img { max-width: 100%; height: auto; } figure { margin: 0; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; } .pictures figure { flex: 1 1 19rem; max-width: 30rem; }
.picture { background: #fff; border-radius: .4rem; }
.answers { display: grid; gap: .6rem; grid-template-columns: repeat(auto-fill, minmax(5.5rem, 1fr)); padding: 0; }
.answers li { list-style: none; text-align: center; font-size: .85rem; background: var(--soft); padding: .4rem;
  border-radius: .4rem; }
.answers img { width: 4rem; height: 4rem; object-fit: contain; image-rendering: pixelated; }
.wrong { outline: 2px solid var(--bad); } .wrong b { color: var(--bad); }
td.wide { width: 50%; } .bar { background: #57a; height: .8rem; border-radius: .2rem; min-width: 1px; }
.bar.low { background: var(--bad); }
code, pre { font-family: ui-monospace, monospace; font-size: .9em; overflow-wrap: anywhere; }
pre { background: var(--soft); padding: .7rem; border-radius: .4rem; overflow-x: auto; overflow-wrap: normal; }
footer { margin-top: 3rem; font-size: .85rem; border-top: 1px solid var(--line); }
"""


def page(title: str, *sections: str) -> str:
    """A whole HTML page of the given sections (HTML)."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def section(title: str, body: str) -> str:
    """A heading and what stands under it (HTML)."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """A table of plain text cells that scrolls by itself on a narrow screen; `numbers`: columns set to the right."""

    def row(tag: str, cells: Sequence[str]) -> str:
        marks = (' class="number"' if i in numbers else "" for i in range(len(cells)))
        return "<tr>" + "".join(f"<{tag}{m}>{escape(c)}</{tag}>" for m, c in zip(marks, cells, strict=True)) + "</tr>"

    body = "\n".join(row("td", cells) for cells in rows)
    return f'<div class="scroll"><table>\n<thead>{row("th", header)}</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def facts(values: Mapping[str, str]) -> str:
    """A table of two columns without a header: what, and its value."""
    rows = "\n".join(f'<tr><th scope="row">{escape(k)}</th><td>{escape(v)}</td></tr>' for k, v in values.items())
    return f'<div class="scroll"><table>\n{rows}\n</table></div>'


def pictures(drawings: Mapping[str, bytes]) -> str:
    """SVG drawings side by side, or one below the other where the screen is narrow; keys: what each shows, in words."""
    figures = (
        f'<figure><img class="picture" alt="{escape(text)}" src="data:image/svg+xml;base64,'
        f'{base64.b64encode(drawing).decode()}"></figure>'
        for text, drawing in drawings.items()
    )
    return f'<div class="pictures">{"".join(figures)}</div>'


def answers(pixels: np.ndarray, truths: Sequence[str], given: Sequence[str], scores: Sequence[float]) -> str:
    """Pictures, uint8 [n, height, width, 3], with the answer, its score 0..1, and the truth where it differs."""
    items = []
    for image, truth, answer, score in zip(pixels, truths, given, scores, strict=True):
        wrong = truth != answer
        note = f" not {escape(truth)}" if wrong else ""
        items.append(
            f'<li{" class=wrong" if wrong else ""}><img alt="a picture of {escape(truth)}" '
            f'src="{_as_data(image)}"><br><b>{escape(answer)}</b>{note}<br>{score:.1%}</li>'
        )
    return '<ul class="answers">' + "\n".join(items) + "</ul>"


def percent(fraction: float) -> str:
    """A fraction 0..1 as a percentage with two digits behind the point."""
    return f"{fraction:.2%}".replace("%", " %")


def size(size_bytes: int) -> str:
    """Bytes in thousands or millions."""
    return f"{size_bytes / 1e6:.2f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.1f} kB"


def artifact_page(manifest: Mapping[str, Any], *more: str) -> str:
    """The page of one exported file, from its manifest; more: sections (HTML) that stand behind what it says."""
    contract, calibration, found = manifest["contract"], manifest["calibration"], manifest["verification"]
    about = {
        "file": manifest["file"],
        "format": manifest["format"],
        "size": size(manifest["size_bytes"]),
        "SHA-256": manifest["sha256"],
        "network": f"{manifest['model']['name']}, {manifest['model']['parameters']:,} parameters",
        "calibrated on": f"{calibration['count']} images of {calibration['data']}" if calibration else "nothing",
    }
    sections = [
        section("The file", facts(about)),
        section(
            "Contract",
            facts({f"{side} {name}": what for side in ("input", "output") for name, what in contract[side].items()}),
        ),
        section("How near its embeddings are to the network's", similarity_table(found))
        if manifest["answers"] == "embedding"
        else section("How well it answers", verification_table(found, manifest["accuracy_verified"])),
        *price_section(manifest.get("in_float")),
        *noise_section(found),
        *more,
        *([section("Labels", f"<p>{escape(', '.join(labels[:100]))}</p>")] if (labels := manifest["labels"]) else []),
        section("Made with", facts(manifest["versions"])),
    ]
    return page(manifest["file"], *sections)


def verification_table(found: Mapping[str, Any] | None, accuracy_verified: bool) -> str:
    """What a verification found, or plainly that none was made."""
    if found is None:
        return "<p>Not run here: accuracy and agreement are not verified.</p>"
    rows = {"agreement with the network": with_interval(found["agreement"], found["agreement_interval"])}
    if accuracy_verified:
        rows["accuracy of the network"] = with_interval(found["model_top1"], found["model_interval"])
        rows["accuracy of the file"] = with_interval(found["file_top1"], found["file_interval"])
    else:
        rows["accuracy"] = "not verified: only the calibration images were at hand"
    if kernels := found.get("kernels"):
        rows["accelerated and reference kernels"] = (
            f"{kernels['agreeing']} of {kernels['count']} images agree; largest difference of a score "
            f"{kernels['largest_difference']:.4f}"
        )
    latency = found["latency"]
    how_fast = "not run here" if latency is None else f"{latency['median_ms']:.2f} ms, median of {latency['runs']}"
    return facts(
        {
            f"images of {found['data']}": f"{found['count']:,}",
            **rows,
            "largest difference of a score": f"{found['largest_score_difference']:.4f}",
            "latency where it was exported, one thread": how_fast,
        }
    )


def similarity_table(found: Mapping[str, Any] | None) -> str:
    """How near the embeddings of a file are to its network's, or plainly that nobody looked."""
    if found is None:
        return "<p>Not run here: how near they are is not verified.</p>"
    latency = found["latency"]
    rows = {
        f"images of {found['data']}": f"{found['count']:,}",
        "cosine similarity, mean": f"{found['mean_cosine']:.5f}",
        "cosine similarity, worst": f"{found['worst_cosine']:.5f}",
        "largest difference of a number": f"{found['largest_difference']:.4f}",
        "latency where it was exported, one thread": "not run here"
        if latency is None
        else f"{latency['median_ms']:.2f} ms, median of {latency['runs']}",
    }
    if kernels := found["kernels"]:
        rows["accelerated and reference kernels"] = f"{kernels['agreeing']} of {kernels['count']} images agree"
    return facts(rows)


def price_section(kept: Mapping[str, Any] | None) -> list[str]:
    """Which parts stay in floating point, and what was tried to find them."""
    if kept is None:
        return []
    parts = escape(", ".join(kept["parts"])) or "none"
    text = f"<p>In floating point: {parts}.</p>"
    if "tried" in kept:
        rows = [
            [count, f"{one['drop']:.2f}", size(one["size_bytes"]), f"{one['median_ms']:.2f} ms"]
            for count, one in kept["tried"].items()
        ]
        header = ("parts in float", "points lost", "size", "latency")
        text += (
            f"<p>The fewest that lose at most {kept['max_drop']} points on {escape(kept['chosen_on'])}, which is also "
            f"what they were chosen on.</p>{table(header, rows, numbers=(0, 1, 2, 3))}"
        )
    return [section("Kept in floating point", text)]


def noise_section(found: Mapping[str, Any] | None) -> list[str]:
    """Signal over noise layer by layer, where it was measured: a bar a layer, the noisiest marked."""
    levels = (found or {}).get("layer_snr_db")
    if not levels:
        return []
    least = sorted(levels.values())[: min(3, len(levels) // 2)]
    rows = "\n".join(
        f'<tr><th scope="row"><code>{escape(layer)}</code></th><td class="number">{level:.1f}</td>'
        f'<td class="wide"><div class="bar{" low" if level in least else ""}" '
        f'style="width:{min(max(level, 0), MOST_DB) / MOST_DB:.1%}"></div></td></tr>'
        for layer, level in levels.items()
    )
    note = (
        "<p>How far the values of each layer are from the network's: signal over noise in decibels, 6 a bit, on a few "
        "images. The noisiest are marked.</p>"
    )
    head = '<thead><tr><th>layer</th><th class="number">dB</th><th></th></tr></thead>'
    body = f'<div class="scroll"><table>\n{head}<tbody>\n{rows}\n</tbody></table></div>'
    return [section("Noise, layer by layer", f"{note}<details><summary>{len(levels)} layers</summary>{body}</details>")]


def targets_section(targets: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which chips take the whole file, how that is known, and why not."""
    if not targets:
        return []
    words = {True: "yes", False: "no", None: "not known"}
    rows = []
    for one in targets:
        more = [f"and {one['more_reasons']} more"] if one["more_reasons"] else []
        said = "; ".join([*one["reasons"], *more, *one["remarks"]])
        rows.append([one["target"], words[one["takes_whole"]], one["basis"], said])
    columns = ("target", "whole", "how that is known", "why not, and what else to know")
    return [section("Which chips take the whole of it", table(columns, rows))]


def disagreement_section(
    found: Mapping[str, Any] | None, pixels: np.ndarray | None, labels: Sequence[str]
) -> list[str]:
    """Pictures, uint8 [n, height, width, 3], that file and network answer differently, with what each says."""
    differing = (found or {}).get("disagreements")
    if not differing or pixels is None:
        return []
    items = "\n".join(
        f'<li><img alt="a picture of {escape(labels[one["label"]])}" src="{_as_data(pixels[one["image"]])}"><br>'
        f"<b>{escape(labels[one['by_file']])}</b> {one['file_score']:.2f}<br>"
        f"network: {escape(labels[one['by_network']])} {one['network_score']:.2f}<br>"
        f"truth: {escape(labels[one['label']])}</li>"
        for one in differing
    )
    note = f"<p>{len(differing)} of those that the network was surest of; bold: what the file says.</p>"
    return [section("Where file and network differ", f'{note}<ul class="answers">{items}</ul>')]


def graph_section(operations: Sequence[tuple[str, str, str]]) -> list[str]:
    """Every operation of a file: its kind, its name, what it gives."""
    if not operations:
        return []
    body = table(("operation", "name", "gives"), operations)
    return [section("Graph", f"<details><summary>{len(operations)} operations</summary>{body}</details>")]


def _as_data(image: np.ndarray) -> str:
    """A picture as an address that holds it."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def bars(values: Mapping[str, tuple[float, str]]) -> str:
    """A bar for each of some numbers above 0, the longest full; by name: the number, and how it is written."""
    most = max(number for number, _ in values.values())
    rows = "\n".join(
        f'<tr><th scope="row"><code>{escape(name)}</code></th><td class="number">{escape(text)}</td>'
        f'<td class="wide"><div class="bar" style="width:{number / most:.1%}"></div></td></tr>'
        for name, (number, text) in values.items()
    )
    return f'<div class="scroll"><table>\n{rows}\n</table></div>'


def with_interval(value: float, interval: Sequence[float]) -> str:
    """A fraction 0..1 as a percentage, with its interval."""
    return f"{percent(value)} (95 %: {percent(interval[0])} to {percent(interval[1])})"
