"""Tables of docs/capacity.md about what was never measured: one card, and many."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from deploy.capacity import costs
from deploy.capacity.card import H100, Shares
from deploy.capacity.costs import Machine, Shape
from deploy.capacity.markdown import ms, table

Results = Mapping[str, Any]


def _short(results: Results) -> str:
    """The page in a few lines."""
    found = results["forecast"]["limits"]
    rows, many = found["rows"], results["forecast"]["fleets"]
    poisson = {
        one["replicas"]: one["asked_a_second"]
        for one in many
        if one["burst"] == 1 and not one["refused_share"]
    }
    fleets = ", ".join(f"{count} about {rate:.0f}" for count, rate in poisson.items())
    return (
        "Predicted: one H100 with Qwen2-Audio-7B answers at most"
        f" {found['bare_16']:.0f} questions a second about 30 s of sound in 16 rows,"
        f" {found['bare_rows']:.0f} in {rows}, with 64 tokens each; steered"
        f" {found['hit_16']:.0f} and {found['hit_rows']:.0f} where the silence is at hand,"
        f" {found['cold_16']:.0f} and {found['cold_rows']:.0f} where it never is. At 0.7 of their"
        f" most, half steered, cards answer without a 429: {fleets} a second."
    )


def _true_sizes(results: Results) -> str:
    """Operations and bytes of Qwen2-Audio's passes, and what they take on the card."""
    shape, sizes = Shape(**results["real"]["shape"]), results["real"]["prompts"]["30"]
    tokens, prefix, shares = sizes["tokens"], sizes["prefix"], Shares()
    card = Machine(
        H100.operations_a_second * shares.operations,
        H100.bytes_a_second * shares.bandwidth,
        results["forecast"]["layer_seconds"],
        overlapped=True,
    )
    passes = {
        "encoder": costs.encoder(shape, sizes["positions"]),
        "prefill, encoder included": costs.prefill(shape, tokens, sizes["positions"]),
        "twin: the question": costs.question(shape, tokens, prefix),
        "twin: the silent prefix": costs.silent_prefix(shape, prefix),
        **{f"decode step, {n} rows": costs.step(shape, n, tokens + 32) for n in (1, 16, 64)},
    }
    rows = []
    for name, work in passes.items():
        operations = work.operations / H100.operations_a_second
        read = work.bytes / H100.bytes_a_second
        recorded = name.startswith("decode")
        parts = {
            "operations": operations / shares.operations,
            "bytes": read / shares.bandwidth,
            "starting operators": 0.0 if recorded else work.layers * card.layer_seconds,
        }
        rows.append([name, f"{work.operations / 1e12:.3g}", f"{work.bytes / 1e9:.3g}"])
        rows[-1] += [ms(operations), ms(read), ms(card.seconds(work, recorded=recorded))]
        rows[-1].append(max(parts, key=lambda part: parts[part]))
    head = ["pass", "10¹² operations", "GB", "floor of operations ms", "floor of bytes ms"]
    return table([*head, "predicted ms", "bound by"], rows)


def _limits(results: Results) -> str:
    """Where each part ends by itself."""
    found = results["forecast"]["limits"]
    rows, p, hit, cold = (
        found["rows"],
        *(found[f"entering_{kind}seconds"] for kind in ("", "hit_", "cold_")),
    )
    lines = [
        ("first token of a bare question, nobody else there", f"{ms(p)} ms"),
        ("the same, steered, hit; miss", f"{ms(hit)} ms; {ms(cold)} ms"),
        (
            f"a round of 1; 16; {rows} rows",
            "; ".join(f"{ms(found[f'round_{n}_seconds'])} ms" for n in ("1", "16", "rows")),
        ),
        ("rows of 1,024 tokens that there is memory for", str(found["rows_fit"])),
        ("prefill alone", f"{found['prefill_alone']:.1f} a second"),
        ("decoding alone, 16 rows", f"{found['decode_alone_16']:.1f} a second"),
        (f"decoding alone, {rows} rows", f"{found['decode_alone_rows']:.1f} a second"),
        *(
            (
                f"{says}: 16 rows; {rows} rows",
                f"{found[f'{k}_16']:.1f}; {found[f'{k}_rows']:.1f} a second",
            )
            for k, says in (("bare", "bare"), ("hit", "steered, hit"), ("cold", "steered, miss"))
        ),
        (
            "bodies, clips and prompts, one core of the CPU measured here",
            f"{found['front_one_core']:.0f} a second",
        ),
    ]
    return table(["30 s clips, answers of 64 tokens, one H100 (predicted)", ""], lines)


def _one(results: Results) -> str:
    """One card: at most, and at 80 % of that."""
    rows = [
        [
            one["mix"],
            f"{one['steered']:.0%}",
            str(one["rows"]),
            f"{one['cache_bytes'] / 1e9:g}",
            f"{one['most_a_second']:.1f}",
            "" if one["hit_share"] != one["hit_share"] else f"{one['hit_share']:.0%}",
            f"{one['p50_first_token_seconds']:.2f}; {one['p99_first_token_seconds']:.2f}",
            f"{one['p50_seconds']:.1f}; {one['p99_seconds']:.1f}",
            f"{one['mean_rows']:.0f}",
        ]
        for one in results["forecast"]["one"]
    ]
    head = ["clips", "steered", "rows", "cache GB", "most a second", "hits"]
    return table([*head, "first token p50; p99 s", "answer p50; p99 s", "rows in use"], rows)


def _shares(results: Results) -> str:
    """How far the result hangs on the stated shares."""
    found = results["forecast"]["shares"]
    low, stated, high = (f"{found[name]:.1f}" for name in ("low", "stated", "high"))
    return (
        f"With 0.35 and 0.45 in their place the same card answers {low} bare questions about 30 s a"
        f" second in 64 rows, with 0.5 and 0.6 {stated}, with 0.65 and 0.8 {high}."
    )


def _fleets(results: Results) -> str:
    """One, 8 and 64 cards."""
    rows = [
        [
            str(one["replicas"]),
            "bursts" if one["burst"] > 1 else "Poisson",
            one["routing"].replace("_", " "),
            f"{one['asked_a_second']:.0f}",
            f"{one['answered_a_second']:.0f}",
            f"{one['p50_first_token_seconds']:.2f}; {one['p99_first_token_seconds']:.2f}",
            f"{one['p50_seconds']:.1f}; {one['p99_seconds']:.1f}",
            f"{one['refused_share']:.1%}",
            f"{one['hit_share']:.0%}",
        ]
        for one in results["forecast"]["fleets"]
    ]
    head = ["cards", "arrivals", "routing", "asked a second", "answered a second"]
    return table([*head, "first token p50; p99 s", "answer p50; p99 s", "429", "hits"], rows)


TABLES: Mapping[str, Callable[[Results], str]] = {
    "short": _short,
    "true_sizes": _true_sizes,
    "limits": _limits,
    "one": _one,
    "shares": _shares,
    "fleets": _fleets,
}
