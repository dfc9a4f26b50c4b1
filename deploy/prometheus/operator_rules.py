"""`make rules`: the alert rules as a PrometheusRule, for clusters with the Prometheus operator."""

from __future__ import annotations

import textwrap
from pathlib import Path

RULES = Path(__file__).with_name("rules.yaml")
OPERATOR_RULES = Path(__file__).parents[1] / "kubernetes" / "monitoring" / "rules.yaml"
_HEADER = """\
# Made from deploy/prometheus/rules.yaml by `make rules`: change them there.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: allears
spec:
"""


def operator_rules(rules: str) -> str:
    """The manifest that holds the text of the rules, its comments included."""
    groups = rules[rules.index("groups:\n") :]
    return _HEADER + textwrap.indent(groups, "  ")


if __name__ == "__main__":
    OPERATOR_RULES.write_text(operator_rules(RULES.read_text()))
