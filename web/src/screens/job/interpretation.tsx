// What the curves mean: verdict, findings, the checkpoint to use, the next run.
import { useEffect, useRef } from "preact/hooks";
import type { Checkpoint, Finding, Run } from "../../api/client";
import { isOver, type LiveJob } from "../../api/live";
import { setQuery, useQuery } from "../../router";
import { Badge, Card, Facts, Fold, LinkButton } from "../../ui";
import { loss, number, percent, words } from "../../ui/format";
import { told, tryLink } from "./parts";

export function Interpretation({ live, run, checkpoints }: { live: LiveJob; run: Run; checkpoints: readonly Checkpoint[] }) {
  const said = live.diagnosis.value;
  if (!said) {
    const warnings = live.events.value.filter(({ type, level }) => type === "message" && level === "warn");
    return (
      <Card title="What the curves say">
        <p class="muted">{isOver(run) ? "Nothing: the job ended before its first evaluation." : "The first words come with the first evaluation after step 0."}</p>
        {warnings.map(({ id, message }) => <p key={id} class="wrap"><Badge of="warning" /> {message}</p>)}
      </Card>
    );
  }
  const { verdict, findings, checkpoint, plots, reading, cannot_tell } = said;
  const score = checkpoint?.score;
  const show = score?.name.includes("loss") ? loss : percent;
  const name = checkpoints.find(({ step_number }) => step_number === checkpoint?.step)?.fine_tuned_model_checkpoint;
  const changed = Object.entries(said.next_hyperparameters).filter(([knob, value]) => value !== (run.resolved?.[knob] ?? null));
  return (
    <Card title="What the curves say" actions={!said.final && <span class="muted small">as of step {number(said.step)}</span>}>
      <p class="verdict">{verdict}</p>
      {findings.length > 0 && <ul class="findings">{findings.map((finding, index) => <FindingItem key={index} finding={finding} />)}</ul>}
      {checkpoint && (
        <section class="stack tight">
          <h3>Checkpoint to use</h3>
          <p>Step {number(checkpoint.step)}: {checkpoint.reason}.</p>
          {score && <p class="muted small">{words(score.name)} on new data: {show(score.value)}, with 90 % certainty from {show(score.low)} to {show(score.high)}.</p>}
          {name && <div><LinkButton small to={tryLink(run.job.model, name)}>Try step {number(checkpoint.step)}</LinkButton></div>}
          {!name && isOver(run) && <p class="muted small">No checkpoint of this step was kept.</p>}
        </section>
      )}
      {(isOver(run) || changed.length > 0) && (
        <section class="stack tight">
          <h3>Next run</h3>
          {changed.length ? <ul class="changes">{changed.map(([knob, after]) => <li key={knob}><Knob {...{ knob, after }} before={run.resolved?.[knob]} /></li>)}</ul> : <p class="muted">Nothing suggests other hyperparameters.</p>}
          <div><LinkButton small to={`/jobs/new?from=${run.id}`}>Start the next run</LinkButton></div>
        </section>
      )}
      <Fold title="How to read these curves">
        <div class="stack">{[["Loss", plots.loss], ["Token accuracy", plots.token_accuracy], ["Together", reading]].map(([title, text]) => <p key={title}><b>{title}.</b> {text}</p>)}</div>
      </Fold>
      {cannot_tell.length > 0 && <Fold title="What these curves cannot tell"><ul>{cannot_tell.map((line) => <li key={line}>{line}</li>)}</ul></Fold>}
    </Card>
  );
}

function FindingItem({ finding: { code, severity, steps, message, advice, changes, evidence, confidence } }: { finding: Finding }) {
  const chosen = useQuery("finding") === code;
  const ref = useRef<HTMLLIElement>(null);
  useEffect(() => {
    if (chosen) ref.current!.scrollIntoView({ block: "nearest" });
  }, [chosen]);
  return (
    <li ref={ref} class={chosen ? "chosen" : ""}>
      <button type="button" aria-pressed={chosen} onClick={() => setQuery({ finding: chosen ? null : code })}>
        <Badge of={severity} />
        <b>{words(code)}</b>
        {steps && <span class="muted small">steps {number(steps[0])} to {number(steps[1])}</span>}
      </button>
      <p>{message}</p>
      {advice && <p><b>Advice.</b> {advice}</p>}
      {changes.length > 0 && <ul class="changes">{changes.map((change) => <li key={change.knob}><Knob {...change} />, because {change.reason}</li>)}</ul>}
      <Fold title={`Evidence${confidence < 1 ? `, ${percent(confidence, 0)} sure` : ""}`}><Facts of={Object.entries(evidence).map(([name, value]) => [words(name), told(value)])} /></Fold>
    </li>
  );
}

const Knob = ({ knob, before, after }: { knob: string; before: unknown; after: unknown }) => <><code>{knob}</code> {told(before)} → <b>{told(after)}</b></>;
