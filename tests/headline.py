"""The headline numbers that a run must give (issue 18), and which of them the README shows."""

COALITIONS = ("none", "image", "text", "both")
QUANTITIES = ("phi_image", "phi_text", "cti")
BASE = {"editor.attribute_reached", "editor.others_kept", "clip.recall_at_1", "mdlm.facts", "mdlm.questions"}
DISP_KINDS = ("asr_with_trigger", "asr_without_trigger", "facts")
DISP_BEFORE = {f"disp.{kind}.{stage}" for kind in DISP_KINDS for stage in ("base", "before")} | {"disp.rho"}
DISP = DISP_BEFORE | {f"disp.{kind}.after" for kind in DISP_KINDS}  # of an attack that succeeds
TARGETS = ("insertion", "refusal", "a_smile_as_a_sad_mouth")
DISP_TARGETS = {f"disp.{goal}.asr_with_trigger.{stage}" for goal in TARGETS for stage in ("before", "after")}


def collapse(pair: str, protocol: str) -> set[str]:
    """What there is of every attack, failed ones too: success, and the null."""
    names = {f"asr_{name}" for name in COALITIONS} | {f"{name}.null" for name in QUANTITIES}
    return {f"collapse.{pair}.{protocol}.{name}" for name in names}


def attribution(pair: str, protocol: str) -> set[str]:
    """What there is of attacks that succeed alone."""
    return {f"collapse.{pair}.{protocol}.{name}" for name in QUANTITIES}


PAIRS = [(pair, protocol) for pair in ("white-box", "eyeglasses", "stop-sign") for protocol in ("or", "and")]
READ = BASE | (DISP - {"disp.rho"}) | set().union(*(attribution(*one) for one in (*PAIRS, ("control", "and"))))
NAMES = READ | DISP | DISP_TARGETS | set().union(*(collapse(*one) for one in (*PAIRS, ("control", "and"))))
SMOKE = BASE | DISP_BEFORE | set().union(*(collapse(n, p) for n in ("white-box", "control") for p in ("or", "and")))
