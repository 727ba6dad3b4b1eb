"""The programs of a frozen folder. ``scorecard.freeze_code`` cuts them out, with all that they reach."""
