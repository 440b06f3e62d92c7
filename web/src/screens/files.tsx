// The files: what each is, which jobs name it, what its lines hold; and uploads.
import { Fragment } from "preact";
import { useState } from "preact/hooks";
import { del, get, url } from "../api/client";
import type { FileOverview } from "../api/client";
import { Link, setQuery, useQuery } from "../router";
import { Button, Clip, Copy, Empty, ErrorNote, Page, Skeleton, Table, TextField, Time, useLoad } from "../ui";
import { bytes, number } from "../ui/format";
import { Deleting, Users } from "./library";
import { Upload } from "./upload";

const [PAGE, LINES] = [50, 20];
const HEAD = ["Name", "Purpose", "Size", "Created", "Used by", <span class="sr-only">Actions</span>];

export default function Files() {
  const q = useQuery("q") ?? "";
  const opened = useQuery("rows");
  const [linked] = useState(opened);
  const [pages, setPages] = useState(1);
  const [doomed, setDoomed] = useState<FileOverview | null>(null);
  const load = async (abort: AbortSignal) => {
    const files: FileOverview[] = [];
    let more = true;
    for (let page = 0; more && page < pages; page++) {
      const { data, has_more } = await get("/api/files", { q, limit: PAGE, after: files.at(-1)?.id ?? null }, abort);
      files.push(...data);
      more = has_more;
    }
    if (linked && !q && !files.some(({ id }) => id === linked)) files.unshift(...(await get("/api/files", { q: linked, limit: 1 }, abort)).data);
    return { files, more };
  };
  const { data, error, busy, reload } = useLoad(load, [q, pages]);
  return (
    <Page title="Files" actions={<Upload onDone={reload} />}>
      <div class="filters"><TextField label="Search" quiet type="search" placeholder="Search name or id" value={q} onInput={(q) => setQuery({ q })} /></div>
      {error && <ErrorNote error={error} retry={reload} />}
      {!data && !error && <Skeleton height={320} />}
      {data && data.files.length > 0 && (
        <Table label="Files" busy={busy} class="library cards" head={HEAD}>
          {data.files.map((file) => (
            <Fragment key={file.id}>
              <Row file={file} opened={file.id === opened} onDelete={() => setDoomed(file)} />
              {file.id === opened && <tr role="row"><td role="cell" colSpan={HEAD.length}><Lines id={file.id} /></td></tr>}
            </Fragment>
          ))}
        </Table>
      )}
      {data?.files.length === 0 && q && <Empty title="No file matches"><Button onClick={() => setQuery({ q: null })}>Show all files</Button></Empty>}
      {data?.files.length === 0 && !q && <Empty title="No files yet"><p>A training file is JSON lines: one conversation a line, under "messages", or a "prompt" and its "completion".</p></Empty>}
      {data?.more && <div><Button onClick={() => setPages(pages + 1)}>Load more</Button></div>}
      {doomed && (
        <Deleting name={doomed.filename} onDelete={() => del("/v1/files/{file_id}", { file_id: doomed.id })} onClose={() => setDoomed(null)} onDone={reload}>
          <p>Its bytes are deleted for good. {doomed.used_by.length ? "Jobs that used it keep their results:" : "No job uses it."}</p>
          {doomed.used_by.length > 0 && <Users of={doomed.used_by} all />}
        </Deleting>
      )}
    </Page>
  );
}

function Row({ file: { id, filename, ...file }, opened, onDelete }: { file: FileOverview; opened: boolean; onDelete: () => void }) {
  const trains = file.purpose === "fine-tune";
  return (
    <tr role="row">
      <td role="cell" class="name">
        <span class="wrap">{filename}</span>
        <div class="row"><Clip text={id} class="mono muted" /> <Copy text={id} label="Copy id" /></div>
      </td>
      <td role="cell" class="nowrap">{file.purpose}</td>
      <td role="cell" class="nowrap">{bytes(file.bytes)}</td>
      <td role="cell" class="nowrap"><Time at={file.created_at} /></td>
      <td role="cell" class="origin"><Users of={file.used_by} /></td>
      <td role="cell">
        <div class="row doing">
          {trains && <Link class="button small" to={`/jobs/new?training_file=${id}`} aria-label={`New job with ${filename}`}>New job</Link>}
          {trains && <Button small aria-expanded={opened} aria-label={`Rows of ${filename}`} onClick={() => setQuery({ rows: opened ? null : id, offset: null })}>Rows</Button>}
          <a class="button small" href={url("/v1/files/{file_id}/content", { file_id: id })} download aria-label={`Download ${filename}`}>Download</a>
          <Button small kind="danger" aria-label={`Delete ${filename}`} onClick={onDelete}>Delete</Button>
        </div>
      </td>
    </tr>
  );
}

function Lines({ id }: { id: string }) {
  const offset = Number(useQuery("offset")) || 0;
  const { data, error, busy, reload } = useLoad((abort) => get("/api/files/{file_id}/rows", { file_id: id, offset, limit: LINES }, abort), [id, offset]);
  const last = offset + (data?.data.length ?? 0);
  if (error) return <ErrorNote error={error} retry={reload} />;
  if (!data) return <Skeleton height={480} />;
  return (
    <div class="stack">
      <div class="row">
        <Button small disabled={!offset} onClick={() => setQuery({ offset: Math.max(0, offset - LINES) })}>Previous</Button>
        <Button small disabled={busy || last >= data.total} onClick={() => setQuery({ offset: last })}>Next</Button>
        <span class="muted">{`Lines ${number(offset + 1)} to ${number(last)} of ${number(data.total)}`}</span>
      </div>
      <ol class="lines" tabIndex={0} aria-label="Lines">
        {data.data.map(({ line, data, error }) => <li key={line}><span class="muted num">{line}</span>{error ? <p class="field-error">This line {error}</p> : <pre>{JSON.stringify(data, null, 2)}</pre>}</li>)}
      </ol>
    </div>
  );
}
