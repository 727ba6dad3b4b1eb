"""Which cases may be ranked together: those that were scored under the same conditions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from scorecard.records import CaseRecords
from scorecard.spec import EvalSpec

#: What must agree: where it lies in an evaluate record -> what a reader calls it.
_SETTINGS = {
    "apply_chat_template": "chat template",
    "fewshot_as_multiturn": "few-shot as turns",
    "system_instruction": "system message",
    "add_bos_token": "BOS token",
    "limit": "limit",
    "max_length": "context length",
    "dtype": "dtype",
    "seed": "seed",
}
_CONDITIONS = {
    "tokenizer_sha256": "tokenizer",
    "adds_bos": "begins with BOS",
    "chat_template_sha256": "text of the chat template",
}
_TASK = {"version": "version", "num_fewshot": "shots"}
_DEFINITION = {"config_sha256": "definition", "documents_sha256": "documents"}

Conditions = Mapping[str, Any]


def conditions(case: CaseRecords) -> Conditions:
    """By name, what the accuracies of a case depend on beside its weights. What is not known is left out."""
    record = case.records.get("evaluate")
    if record is None or record.status != "ok":
        return {}
    result = record.result
    found = _named(result.get("settings"), _SETTINGS)
    found |= {k: v for k, v in _named(result.get("conditions"), _CONDITIONS).items() if v is not None}
    found |= {"lm-eval": result.get("lm_eval_version"), "tasks": ", ".join(sorted(result["tasks"]))}
    defined = (record.inputs.get("tasks") or {}).get("tasks") or {}
    for task, scored in result["tasks"].items():
        for told, names in ((scored, _TASK), (defined.get(task), _DEFINITION)):
            found |= {f"{name} of {task}": value for name, value in _named(told, names).items()}
    return found


def asked_alike(one: EvalSpec, other: EvalSpec) -> bool:
    """Whether two specs ask for the same conditions; the size of batches, say, does not count."""
    names = (
        "tasks",
        "task_paths",
        "num_fewshot",
        "heldout",
        "heldout_documents",
        "heldout_tokens",
        *_SETTINGS,
    )
    return all(getattr(one, name) == getattr(other, name) for name in names)


def differences(one: Conditions, other: Conditions) -> tuple[str, ...]:
    """What does not agree, as ``name: value, not value``; what only one of the two knows is passed over."""
    return tuple(
        f"{name}: {_shown(one[name])}, not {_shown(other[name])}"
        for name in one
        if name in other and one[name] != other[name]
    )


def grouped(cases: Mapping[str, Conditions], first: Iterable[str] = ()) -> list[list[str]]:
    """Cases whose conditions agree, together; those in `first` open the first groups.

    A case joins the first group whose opening case it agrees with. The order of `cases` does not matter.
    """
    groups: list[list[str]] = []
    order = [*first, *sorted(cases.keys() - set(first), key=lambda case: (-len(cases[case]), case))]
    for case in order:
        for group in groups:
            if not differences(cases[case], cases[group[0]]):
                group.append(case)
                break
        else:
            groups.append([case])
    return groups


def _named(values: Mapping[str, Any] | None, names: Mapping[str, str]) -> dict[str, Any]:
    return {name: values[key] for key, name in names.items() if key in values} if values else {}


def _shown(value: Any) -> str:
    """A value in few letters; of a hash the first eight."""
    if isinstance(value, str) and len(value) == 64 and " " not in value:
        return value[:8]
    words = {None: "none", True: "yes", False: "no"}
    return words.get(value, str(value)) if value is None or isinstance(value, bool) else str(value)
