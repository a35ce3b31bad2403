"""The headline numbers that every full run must give (issue 2, item 9)."""

NAMES = {
    "mdlm.accuracy_what",
    "mdlm.accuracy_yes_no",
    "editor.tone_success",
    "clip.image_to_text_recall_at_5",
    *(f"disp.{kind}.{stage}" for kind in ("asr_with_trigger", "asr_without_trigger") for stage in ("before", "after")),
    *(f"disp.accuracy.{stage}" for stage in ("base", "before", "after")),
    *(
        f"collapse.{protocol}.{quantity}"
        for protocol in ("or", "and")
        for quantity in ("phi_image", "phi_text", "cti", "asr_none", "asr_image", "asr_text", "asr_both")
    ),
}
