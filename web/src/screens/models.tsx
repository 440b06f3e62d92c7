// Bases, fine-tuned models and their checkpoints: where each comes from, and what can be done with it.
import { useState } from "preact/hooks";
import { del, get, url } from "../api/client";
import type { ModelOverview } from "../api/client";
import { Link, setQuery, useQuery } from "../router";
import { Button, Copy, Empty, ErrorNote, LinkButton, Page, Skeleton, Table, TextField, Time, useLoad } from "../ui";
import { bytes, number } from "../ui/format";
import { Deleting, Users } from "./library";

const KINDS = { lora: "LoRA", full: "Full" };
const HEAD = ["Name", "Size", "Created", "Made by", "Jobs from it", <span class="sr-only">Actions</span>];

export default function Models() {
  const q = useQuery("q") ?? "";
  const { data, error, reload } = useLoad((abort) => get("/api/models", {}, abort), []);
  const [doomed, setDoomed] = useState<ModelOverview | null>(null);
  const all = data?.data ?? [];
  const shown = all.filter((model) => [model.name, model.base, model.job_id, model.training_file?.filename].join(" ").toLowerCase().includes(q.toLowerCase()));
  const checkpoints = all.filter((model) => model.is_checkpoint && !doomed?.is_checkpoint && model.job_id === doomed?.job_id);
  return (
    <Page title="Models" actions={<LinkButton to="/jobs/new" kind="primary">New job</LinkButton>}>
      <div class="filters"><TextField label="Search" quiet type="search" placeholder="Search name, base, job or file" value={q} onInput={(q) => setQuery({ q })} /></div>
      {error && <ErrorNote error={error} retry={reload} />}
      {!data && !error && <Skeleton height={320} />}
      {shown.length > 0 && <Table label="Models" class="library cards" head={HEAD}>{shown.map((model) => <Row key={model.name} model={model} onDelete={() => setDoomed(model)} />)}</Table>}
      {data && !shown.length && <Empty title="No model matches"><Button onClick={() => setQuery({ q: null })}>Show all models</Button></Empty>}
      {data && all.every((model) => model.kind === "base") && <Empty title="No fine-tuned model yet"><p>A job makes one of a base and a file of examples.</p></Empty>}
      {doomed && (
        <Deleting name={doomed.name} onDelete={() => del("/v1/models/{model}", { model: doomed.name })} onClose={() => setDoomed(null)} onDone={reload}>
          <p>Its weights are deleted for good; the job that made it keeps its curves and results.</p>
          {checkpoints.length > 0 && <div>Its checkpoints stay:<ul>{checkpoints.map(({ name }) => <li key={name}>{name}</li>)}</ul></div>}
          {doomed.used_by.length > 0 && <div>Jobs that start from it:<Users of={doomed.used_by} all /></div>}
        </Deleting>
      )}
    </Page>
  );
}

function Row({ model, onDelete }: { model: ModelOverview; onDelete: () => void }) {
  const { name, kind, base, step, job_id, training_file: file, is_checkpoint } = model;
  const own = kind !== "base";
  const dash = <span class="muted">–</span>;
  return (
    <tr role="row">
      <td role="cell" class={is_checkpoint ? "name under" : "name"}>
        <div class="row"><span class="wrap">{name}</span> <Copy text={name} /></div>
        <p class="muted small wrap">{kind === "base" ? "Base" : `${is_checkpoint ? "Checkpoint" : KINDS[kind]} of ${base}, step ${number(step)}`}</p>
      </td>
      <td role="cell" class="nowrap">{model.bytes === null ? <span class="muted">{own ? "Gone" : "Not fetched"}</span> : bytes(model.bytes)}</td>
      <td role="cell" class="nowrap">{model.created_at ? <Time at={model.created_at} /> : dash}</td>
      <td role="cell" class="origin">
        {job_id ? <Link to={`/jobs/${job_id}`} class="mono clip" title={job_id}>{job_id}</Link> : dash}
        {file && <span class="small clip" title={file.filename ?? file.id}>{file.filename ? <Link to={`/files?q=${file.id}`}>{file.filename}</Link> : `${file.id} (deleted)`}</span>}
      </td>
      <td role="cell" class="origin"><Users of={model.used_by} /></td>
      <td role="cell">
        <div class="row doing">
          <Link class="button small" to={`/try?models=${encodeURIComponent(name)}`} aria-label={`Try ${name}`}>Try</Link>
          <Link class="button small" to={`/jobs/new?model=${encodeURIComponent(name)}`} aria-label={`Fine-tune from ${name}`}>Fine-tune</Link>
          {own && model.bytes !== null && <a class="button small" href={url("/api/models/{model}/adapter", { model: name })} download aria-label={`Download ${name}`}>Download</a>}
          {own && <Button small kind="danger" aria-label={`Delete ${name}`} onClick={onDelete}>Delete</Button>}
        </div>
      </td>
    </tr>
  );
}
