"""The headline numbers that a run must give (issue 18), and which of them the README shows."""

COALITIONS = ("none", "image", "text", "both")
QUANTITIES = ("phi_image", "phi_text", "cti")
BASE = {"editor.attribute_reached", "editor.others_kept", "clip.recall_at_1", "mdlm.facts", "mdlm.questions"}
DISP = {f"disp.{kind}.{stage}" for kind in ("asr_with_trigger", "asr_without_trigger") for stage in ("before", "after")}
DISP |= {f"disp.accuracy.{stage}" for stage in ("base", "before", "after")}


def collapse(pair: str, protocol: str) -> set[str]:
    """What there is of every attack, failed ones too: success, and the null."""
    names = {f"asr_{name}" for name in COALITIONS} | {f"{name}.null" for name in QUANTITIES}
    return {f"collapse.{pair}.{protocol}.{name}" for name in names}


def attribution(pair: str, protocol: str) -> set[str]:
    """What there is of attacks that succeed alone."""
    return {f"collapse.{pair}.{protocol}.{name}" for name in QUANTITIES}


PAIRS = [(pair, protocol) for pair in ("white-box", "eyeglasses", "stop-sign") for protocol in ("or", "and")]
READ = BASE | DISP | set().union(*(attribution(*one) for one in (*PAIRS, ("control", "and"))))
NAMES = READ | set().union(*(collapse(*one) for one in (*PAIRS, ("control", "and"))))
SMOKE = BASE | DISP | set().union(*(collapse(n, p) for n in ("white-box", "control") for p in ("or", "and")))
