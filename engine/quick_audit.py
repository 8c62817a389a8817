"""A recipe, before anything expensive -> its verifier's quick audit, recorded, or refused in one line."""

from verigrad.engine import data, sandboxing
from verigrad.engine.audit_tables import worst_line
from verigrad.engine.config import Config, ConfigError
from verigrad.engine.run import Run
from verigrad.engine.screen import Screen
from verigrad.verifiers import audit_learned
from verigrad.verifiers.audit import Audited, Limits, audit
from verigrad.verifiers.audit_gold import parts_of
from verigrad.verifiers.audit_report import Report, Result
from verigrad.verifiers.binding import LoadedVerifier

TIME_S = 20.0  # what is not judged by then is left out; built-in verifiers take one or two seconds
MAX_CASES = 40  # of each probe


class VerifierRefused(ConfigError):
    """Training on this verifier would teach something else than its task."""


def audit_before_training(cfg: Config, run: Run, screen: Screen) -> None:
    """Audit the verifier that pays on some rows; VerifierRefused names the probe and the row.

    A resumed run was audited when it was started.
    """
    if cfg.verifier.audit == "off" or run.resume_from is not None:
        return
    settings = cfg.verifier
    report = audit(
        Audited(
            verifier=settings.name,
            options=settings.options,
            num_workers=settings.num_workers,
            deadline_s=settings.deadline_s,
            memory_mb=settings.memory_mb,
            seed=cfg.train.seed,
            sandbox=sandboxing.settings_of(cfg.sandbox),
        ),
        data.sample(cfg.data, seed=cfg.train.seed, num=settings.audit_rows),
        limits=Limits(max_undecided=settings.max_undecided_frac, max_cases=MAX_CASES, time_s=TIME_S),
        quick=True,
    )
    run.record_audit(report.to_json())
    if report.failed:
        raise VerifierRefused(refusal(report))
    screen.say(in_one_line(report))


def refusal(report: Report) -> str:
    """Why a verifier is not trained on, in one line."""
    first = report.failed[0]
    others = f" (and fails {', '.join(one.name for one in report.failed[1:])})" if report.failed[1:] else ""
    missed = first.num_bad + first.num_undecided
    found = f"{missed} of {first.num} came out otherwise than {first.expect!r}"
    remedy = "Mend the verifier or the data (verigrad audit says more), or set verifier.audit = 'off'"
    if first.name == "gold" and first.num_bad == first.num:
        remedy = (
            "If it wants answers in a form of its own, declare it with @verifier(gold=...); else mend it "
            "(verigrad audit says more), or set verifier.audit = 'off'"
        )
    case = worst_line(first) if first.worst else first.name
    return f"verifier.name = {report.verifier!r} fails the audit: {case}; {found}{others}. {remedy}"


def in_one_line(report: Report) -> str:
    """What the audit found, for the screen."""
    if report.control:
        return f"verifier audit: {report.verifier} is a control, of which nothing is expected"
    names = [result.name for result in report.results if result.status == "ok"]
    gold = next((result for result in report.results if result.name == "gold"), None)
    oracle = ""
    if gold is not None and gold.status == "left out":
        oracle = f"; gold not tried: {gold.note}"
    warned = [result for result in report.results if result.status == "warns"]
    warning = "".join(f"; WARNING: {warning_of(one)}" for one in warned)
    return (
        f"verifier audit: {report.verifier} passes {len(names)} quick probes on {report.num_rows} rows"
        f"{oracle} ({report.seconds:.1f} s){warning}"
    )


def warning_of(result: Result) -> str:
    """What a probe found that does not end the run."""
    if result.name in audit_learned.SAYS:
        return f"not so on {result.num_bad} of {result.num} rows: {result.says}"
    return f"{result.name}: {result.num_bad} of {result.num} came out otherwise than {result.expect!r}"


def note_control(loaded: LoadedVerifier, run: Run) -> bool:
    """Say on the screen and in the log that this run is a control; whether it is."""
    controls = [part.policy.control for part in parts_of(loaded)]
    if all(controls):
        run.note(f"CONTROL: {loaded.name} pays whatever is answered; nothing this run learns is the task")
    elif any(controls):
        run.note(f"a part of what {loaded.name} pays is drawn at random, whatever is answered")
    return all(controls)
