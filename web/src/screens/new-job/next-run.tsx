// The run that follows a job: its inputs, with the changes that its diagnosis advises.
import { ApiError, get } from "../../api/client";
import { Link, query, setQuery } from "../../router";
import { Button, Card, ErrorNote, Skeleton, useLoad } from "../../ui";

const DATA = ["training_data", "validation_data"];
const text = (value: unknown): string => String(value ?? "none");

async function load(job_id: string, signal: AbortSignal) {
  const run = await get("/api/jobs/{job_id}", { job_id }, signal);
  const diagnosis = await get("/api/jobs/{job_id}/diagnosis", { job_id }, signal).catch((error: Error) => {
    if (error instanceof ApiError && error.status === 404) return null;
    throw error;
  });
  const advised = diagnosis?.findings.flatMap((finding) => finding.changes) ?? [];
  const used: Record<string, unknown> = { ...run.asked, ...run.resolved };
  const changes = Object.entries(diagnosis?.next_hyperparameters ?? {})
    .filter(([knob, after]) => after !== used[knob])
    .map(([knob, after]) => {
      const reason = advised.find((change) => change.knob === knob && change.after === after)?.reason;
      return { knob, before: text(used[knob]), after: text(after), reason, undone: knob in run.asked ? text(run.asked[knob]) : null };
    });
  const { model, training_file, validation_file, user_provided_suffix: suffix } = run.job;
  const asked = Object.entries(run.asked).map(([name, value]) => [name, text(value)]);
  const filled = { model, training_file, validation_file, suffix, ...Object.fromEntries(asked), ...Object.fromEntries(changes.map(({ knob, after }) => [knob, after])) };
  return { name: suffix ?? run.id, filled, changes, data: advised.filter(({ knob }) => DATA.includes(knob)) };
}

export function NextRun({ from }: { from: string }) {
  const fill = async (signal: AbortSignal) => {
    const found = await load(from, signal);
    const given = query.peek();
    // After a reload the URL has it all, and what was changed since.
    if (!given.has("training_file")) setQuery({ ...found.filled, ...Object.fromEntries(given) });
    return found;
  };
  const { data, error, reload } = useLoad(fill, [from]);
  if (error) return <ErrorNote error={error} retry={reload} />;
  if (!data) return <Skeleton height={120} />;
  return (
    <Card title={<>The run after <Link to={`/jobs/${from}`}>{data.name}</Link></>}>
      {!data.changes.length && <p class="muted">Its hyperparameters as they were: its diagnosis advises no other.</p>}
      <ul class="changes">
        {data.changes.map(({ knob, before, after, reason, undone }) => {
          const isOn = query.value.get(knob) === after;
          return (
            <li key={knob}>
              <span class={isOn ? "grow" : "grow muted"}><code>{knob}</code> {before} → {after}{reason && `, because ${reason}`}</span>
              <Button small onClick={() => setQuery({ [knob]: isOn ? undone : after })} aria-label={`${isOn ? "Undo" : "Apply"} the change of ${knob}`}>
                {isOn ? "Undo" : "Apply"}
              </Button>
            </li>
          );
        })}
        {data.data.map(({ knob, before, after, reason }, index) => (
          <li key={index}><span class="grow">By you, in the {knob.replace("_", " ")}: {text(before)} → {text(after)}, because {reason}</span></li>
        ))}
      </ul>
    </Card>
  );
}
