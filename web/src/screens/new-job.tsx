// A new job: data looked into, hyperparameters resolved with their reasons, and what it would take, before anything runs.
import { useState } from "preact/hooks";
import { ApiError, get, post } from "../api/client";
import type { FileOverviewList, HyperparameterInfo, ModelOverview, Resolution } from "../api/client";
import { navigate, query, setQuery, useQuery } from "../router";
import { Button, Card, Code, ErrorNote, Facts, Note, Page, Segments, Select, Skeleton, TextField, useLoad } from "../ui";
import type { Loaded } from "../ui";
import { bytes, duration, number, plural, words } from "../ui/format";
import { curl, python } from "./code";
import { FilePicker } from "./new-job/file-picker";
import { Hyperparameter } from "./new-job/hyperparameter";
import { NextRun } from "./new-job/next-run";
import { Preview } from "./new-job/preview";
import { Report, settled, useReport } from "./new-job/report";
import { request, validation, VALIDATIONS } from "./new-job/request";
import "./new-job/new-job.css";

const USUAL = ["n_epochs", "batch_size", "learning_rate_multiplier"];
const APART = ["training_split", "seed"]; // they have their own places in the form

export default function NewJob() {
  const about = useLoad((signal) => Promise.all([get("/api/hyperparameters", {}, signal), get("/api/models", {}, signal)]), []);
  const files = useLoad((signal) => get("/api/files", { purpose: "fine-tune", limit: 100 }, signal), []);
  const from = useQuery("from");
  return (
    <Page title="New job">
      {from && <NextRun key={from} from={from} />}
      {about.error && <ErrorNote error={about.error} retry={about.reload} />}
      {about.data ? <Form table={about.data[0]} models={about.data[1].data} files={files} /> : !about.error && <Skeleton height={600} />}
    </Page>
  );
}

function Form({ table, models, files }: { table: HyperparameterInfo[]; models: ModelOverview[]; files: Loaded<FileOverviewList> }) {
  const body = request(table, models[0]?.name ?? "");
  const { model, training_file: file, validation_file } = body;
  const asked = JSON.stringify(body);
  const length = Math.floor(Number(query.value.get("max_length")));
  const subject = { file, model, validation_file, max_length: length >= 8 ? length : undefined };
  const report = useReport(subject);
  const tokens = report.data?.tokens;
  const tokens_per_pass = tokens?.total;
  const num_usable = tokens && tokens.of_rows === tokens.rows ? tokens.rows - tokens.dropped : null;
  const resolve = async (signal: AbortSignal) => (file ? settled().then(() => post("/api/jobs/resolve", { tokens_per_pass, num_usable }, body, signal)) : null);
  const resolution = useLoad(resolve, [asked, tokens_per_pass, num_usable]);

  const [refused, setRefused] = useState<{ asked: string; error: Error } | null>(null);
  const create = async () => {
    try {
      navigate(`/jobs/${(await post("/v1/fine_tuning/jobs", {}, body)).id}`);
    } catch (error) {
      setRefused({ asked, error: error as Error });
    }
  };

  const wrong = refused?.asked === asked ? refused.error : resolution.error;
  const at = (name: string) => (wrong instanceof ApiError && wrong.param?.split(".").at(-1) === name ? wrong.message : null);
  const settings = (names: string[]) =>
    names.flatMap((name) => table.filter((info) => info.name === name)).map((info) => <Hyperparameter key={info.name} info={info} resolution={resolution.data} error={at(info.name)} />);
  const rest = table.map(({ name }) => name).filter((name) => ![...USUAL, ...APART].includes(name));
  const changed = rest.filter((name) => query.value.has(name)).length;
  const [more, setMore] = useState<boolean | null>(null);
  const how = validation();
  const changeHow = (value: string) => setQuery({ validation: value, ...(value !== "file" && { validation_file: null }), training_split: value === "split" ? 0.9 : null });

  return (
    <>
      <div class="split">
        <div class="stack">
          <Card title="Model and data">
            <div class="halves">
              <div class="stack">
                <Select label="Model" value={model} options={[...new Set([...models.map(({ name }) => name), model])]} error={at("model")} onChange={(name) => setQuery({ model: name })} />
                <FilePicker label="Training file" param="training_file" files={files} error={at("training_file")} />
              </div>
              <div class="stack">
                <div class="field"><b>Validation</b><div><Segments label="Validation" value={how} options={VALIDATIONS.map((value) => ({ value, label: words(value) }))} onChange={changeHow} /></div></div>
                {how === "file" && <FilePicker label="Validation file" param="validation_file" files={files} error={at("validation_file")} />}
                {how === "split" && settings(["training_split"])}
                {how === "none" && <p class="muted">Without validation the run cannot show whether the model learns more than its own rows.</p>}
              </div>
            </div>
          </Card>
          {file && <Report {...report} />}
          {file && model && <Preview key={[file, model, subject.max_length].join()} {...subject} />}
          <Card title="Hyperparameters">
            <div class="settings">{settings(USUAL)}</div>
            <details open={(more ?? changed > 0) || rest.some(at)} onToggle={(event) => setMore(event.currentTarget.open)}>
              <summary>More{changed > 0 && `, ${changed} changed`}</summary>
              <div class="settings">{settings(rest)}</div>
            </details>
          </Card>
        </div>
        <Card title="Job" class="summary" actions={<Button kind="primary" disabled={!file} onClick={create}>Create job</Button>}>
          {!file && <p class="hint">Choose a training file first.</p>}
          {wrong && <ErrorNote error={wrong} />}
          <TextField label="Suffix" value={query.value.get("suffix") ?? ""} maxLength={64} error={at("suffix")} hint="Part of the new model's name." onInput={(suffix) => setQuery({ suffix })} />
          {settings(["seed"])}
          <Outlook {...resolution} />
          {resolution.data?.warnings.map((warning) => <Note key={warning} severity="warning">{warning}</Note>)}
          {report.data && report.data.num_errors > 0 && <Note severity="critical">The training file has {plural(report.data.num_errors, "error")}: the job would fail.</Note>}
          {tokens && tokens.dropped === tokens.rows && <Note severity="critical">No row has a target token within max_length {number(tokens.max_length)}: the job would fail.</Note>}
        </Card>
      </div>
      <Card title="The same job in code">
        <div class="halves"><Code label="Python" text={python("job = client.fine_tuning.jobs.create", body, "print(job.id)")} /><Code label="curl" text={curl("/v1/fine_tuning/jobs", body)} /></div>
      </Card>
    </>
  );
}

function Outlook({ data, busy }: Loaded<Resolution | null>) {
  const facts = {
    Rows: [data ? `${number(data.num_training)} training, ${number(data.num_validation)} validation` : "–"],
    Steps: [number(data?.total_steps)],
    Time: [duration(data?.estimate.seconds), data?.estimate.seconds_basis],
    Memory: [bytes(data?.estimate.memory_bytes), data?.estimate.memory_basis],
  };
  return <div aria-busy={busy}><Facts of={Object.entries(facts).map(([name, [value, basis]]) => [name, <>{value}<div class="muted">{basis}</div></>])} /></div>;
}
